"""A generation service with FastAPI: POST a prompt, and optionally a photo, to receive the panorama as JPEG.

    pip install fastapi uvicorn
    python examples/serve.py experiments/cubediff_tiny/model
    curl --output out.jpg -X POST "http://127.0.0.1:8000/panorama?prompt=an+empty+dance+hall&seed=1"
    curl --output out.jpg --data-binary @data/photo.jpg "http://127.0.0.1:8000/panorama?prompt=a+lagoon&steps=20"

One panorama is generated at a time. There is no authentication: the service listens on this machine alone.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"expected Python 3.11 or newer, got {sys.version.split()[0]}: run it with the Python of `make setup`")

import argparse
import io
import tempfile
from pathlib import Path
from threading import Lock
from typing import Annotated

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from cubediff import CubeDiffPipeline
from cubediff.images.reading import read_photo

MAX_BYTES, MAX_PIXELS = 20_000_000, 50_000_000  # of a photo


def decode(body: bytes) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "photo")
        file.write_bytes(body)
        return read_photo(file, MAX_PIXELS)[0]


def service(model: str) -> FastAPI:
    pipeline = CubeDiffPipeline.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
    lock = Lock()  # a pipeline is not thread-safe
    app = FastAPI(title="cubediff")

    def generate(prompt: str, body: bytes, steps: int, seed: int) -> bytes:
        photo = decode(body) if body else None
        generator = torch.Generator().manual_seed(seed)
        with lock:
            result = pipeline(prompt, photo, num_inference_steps=steps, generator=generator, truncate_prompts=False)
        jpeg = io.BytesIO()
        result.panoramas[0].save(jpeg, "JPEG", quality=95)
        return jpeg.getvalue()

    @app.post("/panorama", response_class=Response)
    async def panorama(
        request: Request,
        prompt: Annotated[str, Query(min_length=1, max_length=1000)],
        steps: Annotated[int, Query(ge=1, le=100)] = 20,
        seed: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    ) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"expected a photo of at most {MAX_BYTES} bytes: send a smaller one")
        try:
            jpeg = await run_in_threadpool(generate, prompt, bytes(body), steps, seed)
        except ValueError as error:  # a photo that cannot be read, or a prompt that is too long
            raise HTTPException(400, str(error)) from error
        return Response(jpeg, media_type="image/jpeg")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generates panoramas over HTTP.")
    parser.add_argument("model", help="a run's export, another CubeDiff folder or a Hub id")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    arguments = parser.parse_args()
    uvicorn.run(service(arguments.model), port=arguments.port)
