"Comparing methods: costs by hand, wrong sizes, names that do not exist, folders of other settings, a stranger's method."
import sys
import pytest, torch
from lotterybook.foundations.arguments import plain
from lotterybook.foundations.running import Hook
from lotterybook.pruning.allocation import per_layer
from lotterybook.tools.compare import Training, compare, compare_settings, comparison_table, comparison_text, measured
from lotterybook.tools.methods import METHODS, cut_to, method
from lotterybook.tools.sanity_checks import checked
from lotterybook.tools.command_line import main

torch.set_num_threads(1)
settings = compare_settings(steps=40)
WEIGHTS  = 64*300 + 300*100 + 100*10

def spent(name, density=.1, **more): return measured(dict(method=name, density=density, seed=0, **more), settings)

@pytest.mark.parametrize('name, cost', [  # in dense trainings: the search, then the last training
    ('dense', 1), ('random_uniform', .1), ('random_erk', .1), ('magnitude_at_init', .1), ('one_shot_ticket', 1.1),
    ('fine_tuning', 1.1), ('learning_rate_rewinding', 1.1), ('set_erk', .1),
    ('snip', .1 + 100/2400), ('grasp', .1 + 300/2400)])                # scores of 100 images, where a training has 40*60
def test_cost_by_hand(name, cost):
    found = spent(name)
    assert found['spent'] == pytest.approx(cost, abs=2e-4)  # whole weights
    assert found['remaining'] == pytest.approx(1 if name == 'dense' else .1, abs=2/WEIGHTS)

def test_cost_of_rounds():
    "Ten rounds to a tenth: the sum of a geometric series."
    shares = [.1**(r/10) for r in range(11)]
    assert spent('ticket')['spent'] == pytest.approx(sum(shares), abs=1e-3)
    assert spent('iterative_learning_rate_rewinding')['spent'] == pytest.approx(sum(shares), abs=1e-3)
    late = .05 + .95*sum(shares)                 # 2 of 40 steps, then 38 in each round
    assert spent('late_ticket')['spent'] == pytest.approx(late, abs=1e-3)

@pytest.mark.parametrize('density', [.2, .05, .02])
def test_early_bird_settles_before_half(density):
    found = spent('early_bird', density)
    assert .25 <= found['spent'] < .45 + .5*density and found['remaining'] == pytest.approx(density, abs=2/WEIGHTS)

@pytest.mark.parametrize('density', [.2, .05, .02])
def test_random_masks_do_not_settle(monkeypatch, density):
    "Masks of few weights are near each other whatever they are: the limit is a share of what is possible."
    g = torch.Generator().manual_seed(0)
    def lots(density, rounds=1):
        return lambda run: per_layer({k: torch.rand(m.shape, generator=g) for k, m in run.masks.items()}, run.masks, 1 - density)
    monkeypatch.setattr('lotterybook.tools.methods.cut_to', lots)
    train = Training(settings, 0)
    METHODS['early_bird'](train.make_run, train, density, 0)
    dense = 3*60*WEIGHTS*40
    assert train.spent == pytest.approx(dense*(.5 + .5*density), rel=1e-3)  # cut at half, not before

@pytest.mark.parametrize('name, examples', [('iterated_snip', 100), ('synflow', 1)])
def test_a_hundred_cuts_cost_what_is_left_before_each(name, examples):
    assert spent(name)['spent'] == pytest.approx(.1 + examples/2400*sum(.1**(r/100) for r in range(100)), abs=2e-3)

def test_hooks_may_be_an_iterator():
    class Count(Hook):
        def after_step(self, run): run.extra['n'] = run.extra.get('n', 0) + 1
    train = Training(settings, 0)
    run = train.make_run(0)
    train(run, hooks=iter([Count()]))
    assert run.extra['n'] == 40

@pytest.mark.parametrize('name', ['rigl_uniform', 'rigl_erk'])
def test_rigl_pays_for_the_gradient_of_all_weights(name):
    "One of the three products of a step is dense at an update; the update itself trains with its masks."
    updates = 2                                  # after 10 and 20 steps of 40; from the thirtieth on none
    assert spent(name)['spent'] == pytest.approx(.1 + updates*.9/(3*40), abs=2e-4)

def test_gradual_pruning_costs_less_and_less():
    "Steps cost what is left after the step before; the last half of them a tenth."
    shares = [1 - .9*(1 - (1 - t/20)**3) for t in range(20)] + [.1]*20
    assert spent('gradual_pruning')['spent'] == pytest.approx(sum(shares)/40, abs=1e-3)

@pytest.mark.parametrize('name', ['snip', 'ticket'])
def test_checked_methods_change_one_thing(name):
    train = Training(settings, 0)
    train.replicate.train = lambda run, *rest: None if name == 'snip' else run.rows.append(1)  # weights stay
    plain, shuffled, new = (f(train.make_run, train, .1, 0) for f in (METHODS[name], checked(name, 'shuffled'), checked(name, 'reinitialized')))
    first = train.make_run(0)
    for layer, mask in plain.masks.items():
        w, again, other = (run.net.get_parameter(layer) for run in (first, shuffled, new))
        assert shuffled.masks[layer].sum() == mask.sum() and not shuffled.masks[layer].equal(mask)
        assert again.equal(w*shuffled.masks[layer])                # the initial weights, all of them
        assert new.masks[layer].equal(mask) and not other[mask].equal(w[mask])
    assert shuffled.seed == new.seed == plain.seed                 # the same order of the data

def test_inverted_keeps_the_lowest_of_each_layer():
    train = Training(settings, 0)
    train.replicate.train = lambda run, *rest: None
    plain, turned = (f(train.make_run, train, .1, 0) for f in (METHODS['magnitude_at_init'], checked('magnitude_at_init', 'inverted')))
    w = {k: p.abs() for k, p in train.make_run(0).net.named_parameters()}
    for k, m in plain.masks.items():
        assert turned.masks[k].sum() == m.sum() and w[k][turned.masks[k]].max() <= w[k].flatten().kthvalue(int(m.sum())).values

def test_inverted_chooses_at_random_among_equals():
    "SNIP's scores are zero for dark pixels: the first units of the layer must not be all that is kept."
    train = Training(settings, 0)
    train.replicate.train = lambda run, *rest: None
    mask = checked('snip', 'inverted')(train.make_run, train, .1, 0).masks['layer1.weight']
    assert mask.any(1).float().mean() > .9

@pytest.mark.parametrize('name, change, why', [('snap', 'shuffled', "unknown method 'snap'"), ('snip', 'turned', "change='turned'"), ('ticket', 'inverted', 'scores no untrained network')])
def test_refused_checks(name, change, why):
    with pytest.raises(ValueError, match=why): checked(name, change)

def test_cost_of_masks_that_a_hook_sets():
    "Gradual pruning: each step is counted under the masks that it was made with."
    class Late(Hook):
        def after_step(self, run):
            if run.step == 39: run.set_masks(cut_to(.02)(run))
    train = Training(settings, 0)
    run = train.make_run(0)
    train(run, hooks=[Late()])
    assert train.spent == pytest.approx(3*60*WEIGHTS*(39 + .02), rel=1e-4)

def test_cost_of_hooks_that_look_at_all_gradients():
    "A hook of one's own, too: two thirds of the passes see the kept weights only, the third all of them."
    class Looks(Hook):
        def on_gradient(self, run): self.seen = {name: w.grad.norm() for name, w in run.net.named_parameters()}
    class Sometimes(Looks):
        def whole_gradient(self, run): return run.step%4 == 0
    def cost(*hooks):
        train = Training(settings, 0)
        run = train.make_run(0)
        run.set_masks(cut_to(.02)(run))
        train(run, hooks=hooks)
        return train.spent/(60*WEIGHTS*40)
    assert cost(Hook()) == pytest.approx(3*.02, rel=1e-4)
    assert cost(Looks()) == pytest.approx(2*.02 + 1, rel=1e-4)
    assert cost(Sometimes()) == pytest.approx(3*.02 + .98/4, rel=1e-4)

def test_longer_costs_more():
    assert spent('random_uniform', factor=2.)['spent'] == pytest.approx(.2, abs=2e-4)

def test_the_same_twice():
    a, b = (spent('random_erk') for _ in range(2))
    assert a.pop('seconds') > 0 and b.pop('seconds') > 0 and a == b
    assert spent('random_erk')['accuracy'] != measured(dict(method='random_erk', density=.1, seed=1), settings)['accuracy']

def greedy(make_run, train, density, seed):
    run = make_run(seed)
    train(run)
    return run

def revived(make_run, train, density, seed):
    run = METHODS['magnitude_at_init'](make_run, train, density, seed)
    run.net.layer1.weight.data += 1
    return run

@pytest.mark.parametrize('cheat, why', [(greedy, 'kept 100.00% of the weights, and density=0.1'), (revived, 'pruned weights are not zero')])
def test_unfair_methods_are_refused(monkeypatch, cheat, why):
    monkeypatch.setitem(METHODS, 'cheat', cheat)
    with pytest.raises(ValueError, match=why): spent('cheat')

@pytest.mark.parametrize('name, why', [
    ('tickets', "unknown method 'tickets'"), ('no_such_module:f', "no module 'no_such_module'"), ('math:f', "math has no function 'f'")])
def test_names_that_do_not_exist(tmp_path, name, why):
    with pytest.raises(ValueError, match=why): method(name)
    with pytest.raises(ValueError, match=why): compare(tmp_path/'out', [name])
    assert not (tmp_path/'out').exists()

OWN = '''
from lotterybook.pruning.allocation import per_layer
def first_weights(make_run, train, density, seed):
    run = make_run(seed)
    scores = {name: -mask.cumsum(-1).float() for name, mask in run.masks.items()}
    run.set_masks(per_layer(scores, run.masks, 1 - density))
    train(run)
    return run
'''

def test_the_command_with_a_method_of_ones_own(tmp_path, monkeypatch, capsys):
    "Rows of both comparisons, a table, and nothing done twice; another number of steps is refused in the same folder."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    (tmp_path/'own_of_test.py').write_text(OWN)
    command = ['compare', '--out', 'out', '--methods', 'random_uniform', '--method', 'own_of_test:first_weights', '--densities', '0.2',
               '--seeds', '1', '--steps', '20', '--budget', '1', '--workers', '1']
    assert main(command) == 0
    said = capsys.readouterr().out
    assert 'Equal training' in said and 'Equal cost' in said and 'own_of_test:first_weights' in said
    files = {f: f.stat().st_mtime_ns for f in (tmp_path/'out'/'runs').glob('*.json')}
    assert len(files) == 5  # dense need not be longer or shorter for a budget of one
    assert main(command) == 0 and files == {f: f.stat().st_mtime_ns for f in (tmp_path/'out'/'runs').glob('*.json')}
    assert main([*command[:-6], '--steps', '30', *command[-4:]]) == 2
    assert 'steps' in capsys.readouterr().err

def test_text_has_an_interval_from_five_seeds_on():
    rows = [dict(equal='training', method='a', density=.1, seed=s, accuracy=.9 + s/100, spent=1.) for s in range(5)]
    assert '92.0 ±2.0 (1)' in comparison_text(rows) and '±' not in comparison_text(rows[:4])
    lines = comparison_table(rows, {rows[0]['method']: 'my method', 'other': 'not there'}, 'way').data.split('\n')
    assert lines[0].startswith('| way | ') and len(lines) == 3 and lines[2].startswith('| my method | 92.0 ±2.0 (1)')

def test_a_table_is_of_one_comparison():
    "Ten values of five seeds are no interval of ten; names that fit nothing are a typing error."
    rows = [dict(equal=equal, method='a', density=.1, seed=s, accuracy=.5 + s/100, spent=1.) for equal in ('training', 'cost') for s in range(5)]
    with pytest.raises(ValueError, match='rows of two comparisons'): comparison_table(rows, dict(a='A'))
    with pytest.raises(ValueError, match='names has none of the methods: a'): comparison_table(rows[:5], dict(b='B'))
    assert '| A |' in comparison_table(rows[5:], dict(a='A')).data and comparison_table([], dict(b='B')).data

def test_bad_settings(tmp_path):
    for wrong in (dict(data='minst'), dict(net='lenett'), dict(steps=3), dict(densities=[1.5]), dict(seeds=0)):
        with pytest.raises(ValueError): compare(tmp_path/'out', ['dense'], **wrong)
    assert not (tmp_path/'out').exists()

def test_a_recipe_changes_only_what_it_names():
    "Not the optimizer, from SGD to the network's own."
    usual, other = compare_settings()['recipe'], compare_settings(recipe=dict(lr=.05))['recipe']
    assert usual['optimizer'] == 'sgd' and other == usual | dict(lr=.05)
    assert compare_settings(recipe=dict(optimizer='adam', lr=.004))['recipe']['optimizer'] == 'adam'

@pytest.mark.parametrize('recipe, why', [
    (dict(learning_rate=.05), "'learning_rate'"), (dict(steps=40), "'steps'"), (dict(rate=.5), "'rate'"), (dict(optimizer='adam'), 'lr of adam, too')])
def test_recipes_that_no_method_reads(recipe, why):
    with pytest.raises(ValueError, match=why): compare_settings(recipe=recipe)

def test_warmup_of_a_recipe():
    train = Training(compare_settings(steps=40, recipe=dict(warmup=.5)), 0)
    assert [train.rate(step) for step in (0, 19)] == pytest.approx([.1/20, .1])

def test_training_stops_where_it_is_told():
    train = Training(settings, 0)
    run = train.make_run(0)
    train(run, 10)
    assert run.step == 10 and train.spent == 3*60*WEIGHTS*10 and plain(train.spent, 'spent')
