"Equality of all that a run or a ticket holds, for tests of several parts."
import torch

def same(a, b):
    "Whether two things are of the same kinds and bits, whatever is in them."
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b
