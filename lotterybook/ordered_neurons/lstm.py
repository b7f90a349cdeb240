import torch
def lstm_distances(layer, x, state=None):
    out, _ = layer(x, state)
    h0 = state[0][0] if state is not None else x.new_zeros(x.shape[1], layer.hidden_size)
    prev = torch.cat([h0[None], out[:-1]])
    g = x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0 + prev @ layer.weight_hh_l0.T
    i, f, _, _ = g.sigmoid().split(layer.hidden_size, -1)
    return (1 - f.mean(-1))[None], i.mean(-1)[None]
