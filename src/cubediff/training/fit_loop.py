"""ResumingFitLoop: Lightning's training loop, corrected for runs that resume after the last batch of an epoch."""

from lightning.pytorch.loops.fit_loop import _FitLoop


class ResumingFitLoop(_FitLoop):
    """Lightning's loop, which can begin with a validation, and which counts epochs as an uninterrupted run does.

    A checkpoint is saved before the validation of its step, and Lightning takes that validation as done when it
    resumes from there. After the last batch of an epoch, Lightning resumes without counting the next epoch as started,
    so that it is one behind the second time, and a run of `max_epochs` gets an epoch too many.

    Attributes:
        repeats_validation: Whether the loop begins with a validation; also if all steps are done.
    """

    repeats_validation = False

    @property
    def skip(self) -> bool:
        return super().skip and not self.repeats_validation

    def reset(self) -> None:
        super().reset()
        loop = self.epoch_loop
        if loop.restarted_on_train_batch_end and self.restarted_mid_epoch and loop.batch_progress.is_last_batch:
            self.reset_restart_stage()  # the next epoch is a new one

    def on_run_start(self) -> None:
        super().on_run_start()
        if self.repeats_validation:
            self.repeats_validation = False
            self._validate()

    def _validate(self) -> None:
        loop, connector = self.epoch_loop.val_loop, self.trainer._logger_connector
        counts, is_first = loop.state_dict(), connector._first_loop_iter
        self.trainer.validating = True
        loop.restarting = False  # from its first batch
        loop.run()
        self.trainer.training = True
        connector._first_loop_iter = is_first
        loop.load_state_dict(counts)  # the training loop counts this validation when it begins
