"What several tests here need: a kill at any moment of a step, equality of all that a run holds."
import pytest, torch
from lotterybook.foundations.running import Hook

class Kill(Hook):
    "A kill at one moment of one step."
    def __init__(self, step, moment='after_step'):
        self.step = step
        setattr(self, moment, self.kill)
    def kill(self, run):
        if run.step == self.step: raise KeyboardInterrupt

def same(a, b):
    "Whether two things are of the same kinds and bits, whatever is in them."
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b

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
