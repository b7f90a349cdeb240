"What tests of several parts need: a kill at any moment of a step."
import pytest, torch
from lotterybook.foundations.running import Hook

class Kill(Hook):
    "A kill at one moment of one step."
    def __init__(self, step, moment='after_step'):
        self.step = step
        setattr(self, moment, self.kill)
    def kill(self, run):
        if run.step == self.step: raise KeyboardInterrupt

def killed_and_resumed(make, do, file, kills):
    "The state in which `do(run, file, hooks)` ends, after kills, each followed by a new run."
    def fresh():
        run = make()
        if file.exists():  # whatever is not read from it will be noticed
            with torch.no_grad():
                for p in run.net.parameters(): p.add_(1)
        return run
    for kill in kills:
        with pytest.raises(KeyboardInterrupt): do(fresh(), file, [kill])
    assert file.exists()
    return do(fresh(), file, []).state_dict()
