"Figures: colours that stay apart, labels, the log axis, intervals, words, pictures written whole."
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats as stats
from matplotlib.colors import to_rgb
from lotterybook.foundations.plots import (METHODS, OKABE_ITO, Method, _mean_and_half_width, _spread, caption, curve,
                                           figure_text, label_end, remaining_axis, save_picture, style, use_style)

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

# --- colours and styles

DEUTERANOPE = np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]])

def without_green_cones(colours):
    "Machado, Oliveira and Fernandes (2009), table 1."
    return ((np.array([to_rgb(c) for c in colours])**2.2 @ DEUTERANOPE.T).clip(0, 1))**(1/2.2)

def closest(colours): return min(np.linalg.norm(a - b) for k, a in enumerate(colours) for b in colours[:k])

def test_colours_stay_apart():
    "More than the default colours, without green cones; grey stays grey."
    assert np.allclose(without_green_cones(['#808080']), [to_rgb('#808080')], atol=1e-4)
    assert closest(np.array([[0., 0, 0], [1, 1, 1], [1, 1, .5]])) == .5  # by hand
    default = ['#1f77b4', '#ff7f0e', '#2ca02c', '#d62728', '#9467bd', '#8c564b', '#e377c2', '#7f7f7f']
    assert closest(without_green_cones(OKABE_ITO.values())) > 1.5*closest(without_green_cones(default))

def test_styles():
    "What the caller gives has priority; no two methods share anything; a label has always the same colour."
    assert style('reinit', label='')['label'] == ''
    for field in ('color', 'marker', 'label'): assert len({getattr(m, field) for m in METHODS.values()}) == len(METHODS)
    assert style('my pruner') == style('my pruner')
    looks = [style(f'method {k}') for k in range(200)]
    assert not {o['marker'] for o in looks} & {m.marker for m in METHODS.values()}
    assert len({(o['color'], o['marker']) for o in looks}) == 7*6
    assert style(Method('red', 'x', 'mine'))['label'] == 'mine'

def test_use_style_twice():
    use_style()
    assert plt.rcParams['figure.figsize'][0] == 6
    before = dict(plt.rcParams)
    use_style()
    assert dict(plt.rcParams) == before

def test_figure_text():
    fig, axs = plt.subplots(1, 2)
    axs[0].set(title='Tickets win', xlabel=r'rate $p_{\ell}$', ylabel='accuracy (%)')
    axs[1].set(title='Twins lose', xlabel=r'rate $p_{\ell}$')
    assert figure_text(fig) == 'Tickets win; Twins lose. Vertical: accuracy (%). Horizontal: rate p_ell.'
    assert figure_text(plt.figure()) == ''

# --- labels and the axis

def test_label_end():
    "At the last measured point; nowhere if there is none."
    _, ax = plt.subplots()
    label_end(ax, [1, 2, 3], [5, 6, np.nan], 'stopped early', 'red')
    label_end(ax, 4, 7, 'one point', 'red')
    label_end(ax, [1], [np.nan], 'never measured', 'red')
    assert [(o.get_text(), tuple(map(float, o.xy))) for o in ax.texts] == [('stopped early', (2., 6.)), ('one point', (4., 7.))]

@pytest.mark.parametrize('heights, want', [
    ([5, 0, 50], [7.5, -2.5, 50]),   # two too close: apart around their mean, in order
    ([0, 0, 0], [-10, 0, 10]),
    ([0, 9, 12], [-3, 7, 17]),       # a push that reaches the next one: three share
    ([1, 30], [1, 30])])             # room enough: nothing moves
def test_labels_pushed_apart(heights, want): assert np.allclose(_spread(heights, 10), want)

def test_many_labels():
    places = np.sort(_spread(list(np.random.default_rng(0).uniform(0, 40, 9)), 10))
    assert (np.diff(places) > 10 - 1e-9).all()

remaining = .8**np.arange(16)

def test_remaining_axis():
    "The same before plotting and after; dense at the left; ticks in percent."
    _, axs = plt.subplots(1, 2)
    axs[0].plot(remaining, remaining); remaining_axis(axs[0])
    remaining_axis(axs[1]); axs[1].plot(remaining, remaining)
    assert axs[0].get_xlim() == axs[1].get_xlim()
    left, right = axs[0].get_xlim()
    assert left >= 1 > .8**15 > right
    assert axs[0].xaxis.get_major_formatter()(.05, 0) == '5'
    for low, want in ((.02, '2 5 10 20 50 100'), (.6, '60 70 80 90 100')):
        axs[0].set_xlim(1, low)
        assert [f'{100*v:.0f}' for v in axs[0].get_xticks() if low <= v <= 1] == want.split()

# --- what varies

def test_interval_by_hand():
    "2.776: a printed table, 4 degrees of freedom. Four seeds: no interval."
    ys = np.array([1., 2, 3, 4, 5])[:, None]
    mean, half = _mean_and_half_width(ys)
    assert np.allclose(mean, [3.]) and np.allclose(half, [2.776*np.sqrt(2.5/5)], atol=1e-3)
    assert np.isnan(_mean_and_half_width(ys[:4])).all()

def test_interval_by_a_second_route():
    "And with one seed missing at one place."
    ys = np.random.default_rng(0).normal(size=(9, 4))
    low, high = stats.t.interval(.95, 8, loc=ys.mean(0), scale=stats.sem(ys))
    mean, half = _mean_and_half_width(ys)
    assert np.allclose(mean - half, low, atol=1e-9) and np.allclose(mean + half, high, atol=1e-9)
    ys[3, 1] = np.nan
    assert np.isclose(_mean_and_half_width(ys)[0][1], np.delete(ys[:, 1], 3).mean(), atol=1e-9)

def invented(seeds): return np.random.default_rng(seeds).normal(.9, .01, (seeds, len(remaining)))

def test_curve():
    "Six seeds have a mean; four, or one as a plain row, have points only."
    _, ax = plt.subplots()
    mean = curve(ax, remaining, invented(6), 'ticket')
    assert np.allclose(mean, invented(6).mean(0), atol=1e-9) and ax.texts[-1].get_text() == 'ticket'
    for few in (invented(4), invented(1)[0]): assert np.isnan(curve(ax, remaining, few, 'ticket')).all()

@pytest.mark.parametrize('x, ys, why', [
    ([1, .8, .64], invented(5), r'expected \(seeds, 3\)'), (remaining, np.empty((0, 16)), r'shape \(0, 16\)')])
def test_curves_of_another_shape(x, ys, why):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=why): curve(ax, x, ys, 'ticket')

@pytest.mark.parametrize('seeds, begins', [(8, 'Thin: 8 seeds. Bold: their mean.'), (3, '3 seeds,'), (1, 'One seed.')])
def test_caption(seeds, begins): assert caption(plt.figure(), seeds, 'More.').startswith(begins)

# --- pictures

class Broken:
    def savefig(self, f, **kw): f.write(b'half a pic'); raise OSError('no space left')

def test_a_picture_is_written_whole(tmp_path):
    "The same figure, the same bytes; a failure leaves the old picture and nothing else."
    fig, _ = plt.subplots()
    path = save_picture(fig, tmp_path/'figures'/'curve.png')
    first = path.read_bytes()
    assert first.startswith(b'\x89PNG') and save_picture(fig, path).read_bytes() == first
    with pytest.raises(OSError, match='no space left'): save_picture(Broken(), path)
    assert path.read_bytes() == first and [o.name for o in path.parent.iterdir()] == ['curve.png']
    with pytest.raises(ValueError, match="'curve.jpg'"): save_picture(fig, tmp_path/'curve.jpg')
