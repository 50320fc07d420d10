"""Measures which metric sees which corruption of real panoramas, against a table that was written before.

    python experiments/metrics/measure.py data/samples OUTPUT [--model MODEL]

Legend: N panoramas, 6 faces, S face size, H and W height and width of a panorama.
"""

# Strengths of each corruption. Those of `FACES_FIRST` change the faces, from which panoramas are blended; the others
# change the panorama, from which faces are cut; `scenes` changes the set.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "brightness": (0.02, 0.05, 0.1, 0.2, 0.4),  # added to the front face, of [0, 1]
    "blur_face": (1, 2, 3, 5, 8),  # standard deviation of a Gaussian on the front face, pixels
    "shift": (1, 2, 4, 8, 16),  # columns by which the front face is rolled
    "flip": (0.2, 0.4, 0.6, 0.8, 1),  # share of the panoramas whose front face is flipped left to right
    "noise": (0.01, 0.02, 0.05, 0.1, 0.2),  # standard deviation, independent for each pixel of all faces
    "grey": (0.2, 0.4, 0.6, 0.8, 0.95),  # blend of all faces with 0.5
    "jpeg": (80, 50, 30, 15, 5),  # quality of the panorama
    "blur": (0.25, 0.5, 1, 2, 4),  # standard deviation of a Gaussian on the panorama, degrees of longitude
    "ramp": (0.02, 0.05, 0.1, 0.15, 0.2),  # brightness that rises from the left to the right border
    "cut": (0.5, 1, 2, 4, 8),  # degrees cut off at the right border; the rest is resized to the width
    "scenes": (0.8, 0.6, 0.4, 0.2, 0.1),  # share of the scenes, which are repeated to as many panoramas
}
FACES_FIRST = ("brightness", "blur_face", "shift", "flip", "noise", "grey")
# Written before anything was measured, and not changed since: + rises, - falls, = stays, ? open, . not measured.
EXPECTED = """
                                brightness blur_face shift flip noise grey jpeg blur ramp cut scenes
overlap_rms                     +          +         +     +    +     -    ?    -    =    =   .
overlap_psnr                    -          -         -     -    -     +    ?    +    =    =   .
overlap_ssim                    -          -         -     -    -     +    ?    +    =    =   .
overlap_relative                +          +         +     +    +     +    =    +    =    =   .
colour_step                     +          +         +     +    +     -    =    -    =    =   .
edge_step                       +          +         +     +    +     -    ?    -    =    =   .
edge_ratio                      +          +         +     +    +     =    =    =    -    -   .
corner_rms                      +          +         +     +    +     -    ?    -    =    =   .
step_beyond_overlap             +          =         ?     +    =     =    =    =    -    =   .
sharpness                       =          -         =     =    +     -    ?    -    =    =   .
erp_wrap                        =          =         =     =    +     =    +    =    +    +   .
discontinuity_of_border         =          =         =     =    +     -    +    -    +    +   .
discontinuity_as_published_code =          =         =     =    +     -    ?    -    =    =   .
discontinuity_of_edges          +          +         +     +    +     -    ?    -    =    =   .
fd                              +          +         =     =    +     +    +    +    =    =   +
kd                              +          +         =     =    +     +    +    +    =    =   +
precision                       -          -         =     =    -     -    -    -    =    =   =
recall                          ?          ?         =     =    -     -    -    -    =    =   -
density                         -          -         =     =    -     -    -    -    =    =   =
coverage                        -          -         =     =    -     -    -    -    =    =   -
omnifid                         +          +         =     =    +     +    +    +    =    =   +
omnifid_pooled_sides            +          +         =     =    +     +    +    +    =    =   +
omnifid_pooled                  +          +         =     =    +     +    +    +    =    =   +
"""
