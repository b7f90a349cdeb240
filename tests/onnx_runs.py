"Networks as ONNX's runtime computes them, for tests of several parts; skips without its packages."
import pytest, torch

def by_onnx(net, args, dynamo, folder, **options):
    "The outputs of a network that either of PyTorch's ONNX exporters wrote, as `f(*args)`."
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
    from onnxruntime import InferenceSession
    file = folder/f'{dynamo}.onnx'
    torch.onnx.export(net, args, file, dynamo=dynamo, verbose=False, **options)
    session = InferenceSession(file)
    def run(*args):
        given = {o.name: x.numpy() for o, x in zip(session.get_inputs(), args, strict=True)}
        return [torch.from_numpy(o) for o in session.run(None, given)]
    return run
