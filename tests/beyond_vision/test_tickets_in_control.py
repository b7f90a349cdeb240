"Page 510: rollouts, returns, evaluation, searches among agents, paths."
import sys
import warnings
from functools import partial
from itertools import product
import numpy as np
import pytest, torch
from kills import Kill, killed_and_resumed
from sameness import same
from torch import nn
from torch.nn import functional as F
from lotterybook.beyond_vision.tickets_in_control import (
    AGENTS, INPUTS, ActorCritic, Rollout, _described, _Games, actor_critic, control_parts, control_settings,
    discounted, draw_inputs, draw_returns, episode_seeds, make_env, mask_and_weights, paths, play,
    random_returns, rollouts, train_agent, unlearned)
from lotterybook.foundations.checkpoints import advance_kept, snapshot
from lotterybook.foundations.hooks import ClipGradient, RateOfStep
from lotterybook.foundations.randomness import mixed_seed
from lotterybook.foundations.running import Hook, Run, advance, seeded
from lotterybook.foundations.training import evaluating
from lotterybook.ordered_neurons.language_model import NotLearned
from lotterybook.pruning.masks import full_masks, remaining
from lotterybook.pruning.schedules import pruner
from lotterybook.tickets.iterative import find_ticket
from lotterybook.tickets.replicates import search, search_plan
from lotterybook.tickets.rounds import first_run

gymnasium = pytest.importorskip('gymnasium')
pytestmark = pytest.mark.filterwarnings('ignore::lotterybook.ordered_neurons.language_model.NotLearned')
SIZES = {'CartPole-v1': (4, 2), 'Acrobot-v1': (6, 3), 'LunarLander-v3': (8, 4)}
FEW = dict(eval_every=5, validation=2, test=3)

def an_agent(env='CartPole-v1', seed=0, optimizer='adam', lr=3e-3):
    torch.manual_seed(seed)
    net = ActorCritic(*SIZES[env], hidden=16)
    make = dict(adam=torch.optim.Adam, rms=torch.optim.RMSprop)[optimizer]
    return Run(net, make(net.parameters(), lr=lr), full_masks(net), seed)

class Counter(gymnasium.Env):
    "Observes how many steps were taken, and the episode's first number. The reward is that step's number."
    observation_space = gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float64)
    action_space      = gymnasium.spaces.Discrete(2)
    def __init__(self, end=10**9, limit=10**9): self.end, self.limit = end, limit
    def _seen(self): return np.array([self.steps, self.first], dtype=np.float64)
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.first = 0, self.np_random.integers(1000)
        return self._seen(), {}
    def step(self, action):
        self.steps += 1
        return self._seen(), float(self.steps), self.steps == self.end, self.steps == self.limit, {}

class Fixed(nn.Module):
    "A policy without preferences, and a value that is ten times the number of steps."
    def __init__(self): super().__init__(); self.weight = nn.Parameter(torch.zeros(1))
    def policy(self, x): return torch.zeros(len(x), 2) + 0*self.weight
    def value(self, x): return 10*x[:, :1] + 0*self.weight

def rollouts_of(env, envs, length, steps, gamma=.5):
    run = Run(Fixed())
    return run, list(rollouts(run, env, envs, length, gamma)(0, steps))

# --- rollouts

def test_a_rollout_is_what_the_agent_did():
    "Played again by hand, environment by environment: the same observations, and its own actions."
    run  = an_agent()
    make = make_env('CartPole-v1')
    some = list(seeded(rollouts(run, 'CartPole-v1', envs=3, length=40), 0)(0, 4))
    for i in range(3):
        game, number, over = make(), i, True
        for rollout in some:
            seen, actions = rollout.observations.view(40, 3, 4), rollout.actions.view(40, 3)
            for t in range(40):
                if over: now, _ = game.reset(seed=mixed_seed(0, 'episode', number) % 2**31)
                assert seen[t, i].equal(torch.from_numpy(now))
                now, _, end, cut, _ = game.step(actions[t, i].item())
                over = end or cut
                if over: number += 3
        assert run.extra['episodes'][i]['number'] == number and number > 3
    assert [len(o.observations) for o in some] == [120]*4

def test_returns_where_nothing_ends():
    "1 + 2/2 + 3/4 + value/8, and the rollout after it begins where this one ended."
    _, (first, second) = rollouts_of(Counter, 2, 3, 2)
    assert first.returns.view(3, 2)[:, 0].tolist() == [1 + 2/2 + 3/4 + 30/8, 2 + 3/2 + 30/4, 3 + 30/2]
    assert second.observations.view(3, 2, 2)[:, 0, 0].tolist() == [3, 4, 5]

def test_returns_at_an_end():
    "Nothing comes after the second step; a new episode with another seed begins."
    _, (one,) = rollouts_of(partial(Counter, end=2), 1, 3, 1)
    assert one.returns.tolist() == [1 + 2/2, 2, 1 + 10/2]
    assert one.observations[:, 0].tolist() == [0, 1, 0] and one.observations[0, 1] != one.observations[2, 1]

def test_returns_at_the_time_limit():
    "After the second step the value of its own last observation would have come: 20."
    _, (one,) = rollouts_of(partial(Counter, limit=2), 1, 3, 1)
    assert one.returns.tolist() == [1 + 2/2 + 20/4, 2 + 20/2, 1 + 10/2]

def test_an_end_at_the_time_limit_is_an_end():
    _, (one,) = rollouts_of(partial(Counter, end=2, limit=2), 1, 2, 1)
    assert one.returns.tolist() == [1 + 2/2, 2]

def test_discounted_beside_a_sum():
    rewards, goes_on = torch.randn(6, 3), (torch.rand(6, 3) < .7).float()
    beyond = torch.randn(3)
    got = discounted(rewards, goes_on, beyond, .9)
    for t, i in product(range(6), range(3)):
        total, weight = 0., 1.
        for k in range(t, 6):
            total  += weight*rewards[k, i].item()
            weight *= .9*goes_on[k, i].item()
        assert got[t, i].item() == pytest.approx(total + weight*beyond[i].item(), rel=1e-5, abs=1e-6)

def test_actions_follow_the_policy():
    "The share of an action is its probability."
    class Biased(Fixed):
        def policy(self, x): return torch.tensor([0., 1.]).expand(len(x), 2)
    torch.manual_seed(0)
    rollout = next(iter(rollouts(Run(Biased()), Counter, 50, 100)(0, 1)))
    assert rollout.actions.float().mean().item() == pytest.approx(torch.tensor(1.).sigmoid().item(), abs=.02)

def test_the_loss():
    "As written down, with its gradient; the value's error is no reason for an action, and entropy lowers the loss."
    net = ActorCritic(4, 3, 8)
    x, actions, returns = torch.randn(20, 4), torch.randint(3, (20,)), torch.randn(20)
    logits, values = net(x)
    advantage = returns - values
    policy = F.cross_entropy(logits, actions, reduction='none')*advantage.detach()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    for value_weight, entropy_weight in ((.5, 0.), (.3, .2)):
        plain = policy.mean() + value_weight*F.mse_loss(values, returns) - entropy_weight*entropy
        loss  = actor_critic(value_weight, entropy_weight)(net, Rollout(x, actions, returns))
        torch.testing.assert_close(loss, plain)
        params = list(net.parameters())
        for a, b in zip(torch.autograd.grad(loss, params), torch.autograd.grad(plain, params, retain_graph=True)):
            torch.testing.assert_close(a, b)

def test_values_of_a_wrong_shape():
    "They would broadcast: each value against each return."
    class Column(ActorCritic):
        def forward(self, x): return self.policy(x), self.value(x)
    rollout = Rollout(torch.randn(5, 4), torch.zeros(5, dtype=torch.long), torch.randn(5))
    with pytest.raises(ValueError, match=r'values of shape \(5, 1\) for 5 observations.*squeeze'):
        actor_critic()(Column(4, 2, 8), rollout)

# --- resuming

@pytest.mark.parametrize('env', SIZES)
def test_killed_and_resumed(tmp_path, env):
    "In the middle of episodes, of any environment, before and after a step: the same bits."
    if env == 'LunarLander-v3': pytest.importorskip('Box2D')
    def do(run, file, hooks):
        batches = seeded(rollouts(run, env, 3, 7), 0)
        if file is None: return advance(run, actor_critic(), batches, 40)
        return advance_kept(run, actor_critic(), batches, 40, hooks, file=file, settings={}, every=4)
    def make(): return an_agent(env, optimizer='rms')
    whole = do(make(), None, []).state_dict()
    ended = killed_and_resumed(make, do, tmp_path/'state', [Kill(6), Kill(17, 'before_step'), Kill(33, 'on_gradient')])
    assert same(ended, whole) and any(e['actions'] for e in whole['extra']['episodes'])

def test_train_agent_resumes(tmp_path):
    "The outcome too; other settings are refused."
    train = partial(train_agent, env='CartPole-v1', steps=25, length=8, save_every=4, **FEW)
    outcome = train(an_agent())
    with pytest.raises(KeyboardInterrupt): train(an_agent(), file=tmp_path/'state', hooks=[Kill(18)])
    assert train(an_agent(), file=tmp_path/'state') == outcome
    for change, what in ((dict(gamma=.9), 'gamma'), (dict(env='Acrobot-v1'), 'env'), (dict(entropy_weight=.1), 'entropy')):
        with pytest.raises(ValueError, match=what): train(an_agent(), file=tmp_path/'state', **change)

def test_episodes_of_another_environment():
    "Actions are not repeated past the end of an episode, and other numbers of environments are named."
    run = an_agent()
    advance(run, actor_critic(), rollouts(run, 'CartPole-v1', 3, 5), 1)
    short = partial(gymnasium.make, 'CartPole-v1', max_episode_steps=3)
    with pytest.raises(ValueError, match='ends sooner in this environment'): advance(run, actor_critic(), rollouts(run, short, 3, 5), 2)
    with pytest.raises(ValueError, match='envs=4, but the run is in 3'): advance(run, actor_critic(), rollouts(run, 'CartPole-v1', 4, 5), 2)

def test_a_file_knows_its_environment(tmp_path):
    "Also one that a function makes."
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.policy, self.value = nn.Linear(2, 2), nn.Linear(2, 1)
        def forward(self, x): return self.policy(x), self.value(x).squeeze(-1)
    def run():
        torch.manual_seed(0)
        net = Two()
        return Run(net, torch.optim.Adam(net.parameters(), lr=1e-3), None, 0)
    train = partial(train_agent, steps=4, save_every=2, file=tmp_path/'state', **FEW)
    with pytest.raises(KeyboardInterrupt): train(run(), partial(Counter, limit=5), hooks=[Kill(3)])
    with pytest.raises(ValueError, match='env'): train(run(), partial(Counter, limit=50))
    train(run(), partial(Counter, limit=5))

def test_a_function_is_known_by_its_name():
    "Its address is another one in the next process."
    def limit(): return 5
    class Limited(Counter):
        def __init__(self, limit): super().__init__(limit=limit())
    one, other = _described(partial(Limited, limit)), _described(partial(Limited, limit=limit))
    assert one == _described(partial(Limited, limit)) != other and '0x' not in str([one, other])
    class Five:
        def __call__(self): return 5
    with pytest.raises(ValueError, match='in env cannot be told from others.*give Five a __repr__'): _described(partial(Limited, Five()))
    Five.__repr__ = lambda self: 'Five()'
    assert 'Five()' in str(_described(partial(Limited, Five())))

class Open(Counter):
    "Counts what is open."
    now = 0
    def __init__(self, *args, **options): super().__init__(*args, **options); Open.now += 1
    def close(self): Open.now -= 1

def test_environments_are_closed():
    "Also after an error."
    play(lambda x: torch.zeros(len(x), 2), partial(Open, limit=3), range(4))
    with pytest.raises(ZeroDivisionError): play(lambda x: 1/0, partial(Open, limit=3), range(4))
    random_returns(partial(Open, limit=3), range(4))
    class Matrix(Open): observation_space = gymnasium.spaces.Box(0, 1, (2, 2))
    with pytest.raises(ValueError, match='a vector of numbers'): make_env(Matrix)
    run = Run(Fixed())
    list(rollouts(run, partial(Open, limit=3), 2, 5)(0, 2))
    with pytest.raises(ValueError, match='envs=3, but'): list(rollouts(run, partial(Open, limit=3), 3, 5)(2, 3))
    run.extra['episodes'][0]['actions'] = [0]*4
    with pytest.raises(ValueError, match='ends sooner'): list(rollouts(run, partial(Open, limit=3), 2, 5)(2, 3))
    assert Open.now == 0

# --- evaluation

def test_play_by_hand():
    net, seeds = an_agent().net, [3, 1, 4]
    returns = play(net.policy, 'CartPole-v1', seeds)
    for seed, got in zip(seeds, returns.tolist()):
        game = gymnasium.make('CartPole-v1')
        now, total, over = game.reset(seed=seed)[0], 0, False
        while not over:
            action = net.policy(torch.from_numpy(now)[None]).argmax().item()
            now, reward, end, cut, _ = game.step(action)
            total, over = total + reward, end or cut
        assert got == total
    assert play(net.policy, 'CartPole-v1', []).shape == (0,)

def test_an_episode_without_end():
    "Nothing would ever come back."
    with pytest.raises(ValueError, match='goes on after longest=50 steps.*time limit'):
        play(lambda x: torch.zeros(len(x), 2), Counter, range(2), longest=50)
    assert play(lambda x: torch.zeros(len(x), 2), partial(Counter, limit=50), range(2), longest=50).tolist() == [50*51/2]*2

def test_random_returns():
    "Each action is as likely; the generator is as before."
    chosen = []
    class Seen(Counter):
        def step(self, action):
            chosen.append(int(action))
            return super().step(action)
    random_returns(partial(Seen, limit=2000), [0])
    assert sum(chosen)/2000 == pytest.approx(.5, abs=.04)
    before = torch.get_rng_state()
    returns = random_returns('CartPole-v1', range(40), seed=3)
    assert torch.get_rng_state().equal(before) and returns.equal(random_returns('CartPole-v1', range(40), seed=3))
    assert not returns.equal(random_returns('CartPole-v1', range(40))) and 15 < returns.mean() < 32

def test_three_kinds_of_episodes():
    "No training plays an episode of validation or test."
    kinds = [set(episode_seeds(0, what, 500)) for what in ('validation', 'test', 'episode')]
    assert all(len(o) == 500 for o in kinds) and not (kinds[0] & kinds[1] | kinds[0] & kinds[2] | kinds[1] & kinds[2])
    assert episode_seeds(1, 'test', 5) != episode_seeds(0, 'test', 5) == episode_seeds(0, 'test', 9)[:5]

class Spoil(Hook):
    "Shortly before the end the policy forgets everything: the best weights are others than the last."
    def after_step(self, run):
        if run.step != 38: return
        with torch.no_grad():
            run.net.policy.output.weight.zero_()
            run.net.policy.output.bias.copy_(torch.tensor([99., 0]))

def test_outcome():
    "Test returns of the best weights and of the last ones; validation is not test."
    run = an_agent(seed=3, lr=2e-2)
    out = train_agent(run, 'CartPole-v1', steps=40, length=8, hooks=[Spoil()], **(FEW | dict(validation=6)))
    by_step = {row['step']: row['validation_return'] for row in out['history']}
    best = max(by_step.values())
    assert list(by_step) == list(range(5, 41, 5)) and by_step[out['stop_step']] == best
    assert out['stop_step'] < 40 and out['mean_return'] == pytest.approx(sum(by_step.values())/8)
    tests = episode_seeds(3, 'test', 3)
    assert out['end_return'] == play(run.net.policy, 'CartPole-v1', tests).mean() < out['stop_return']
    early = an_agent(seed=3, lr=2e-2)
    train_agent(early, 'CartPole-v1', steps=out['stop_step'], length=8, **FEW)
    assert out['stop_return'] == play(early.net.policy, 'CartPole-v1', tests).mean()
    assert by_step[40] == play(run.net.policy, 'CartPole-v1', episode_seeds(3, 'validation', 6)).mean()

def test_an_agent_learns_and_one_that_cannot():
    "The one without a policy stays on the floor; that is said, and its return is reported all the same."
    train = partial(train_agent, env='CartPole-v1', steps=100, length=16, eval_every=20, validation=10, test=10)
    with warnings.catch_warnings(action='error'): learned = train(an_agent(seed=1))
    assert learned['learned'] and learned['end_return'] > 100 and learned['floor'] < 100
    run = an_agent()
    run.set_masks(run.masks | {'policy.output.weight': torch.zeros(2, 16, dtype=torch.bool)})
    with pytest.warns(NotLearned, match='did not learn.*random actions reach'): lost = train(run)
    assert lost['learned'] is False and lost['end_return'] < 15

def test_same_seed_same_agent_other_seed_other_episodes():
    def do(seed):
        run = an_agent(seed=0)
        run.seed = seed
        return train_agent(run, 'CartPole-v1', steps=10, **FEW), run.net.state_dict()
    torch.manual_seed(3); a = do(1)
    torch.manual_seed(4); b = do(1)
    assert same(a, b) and not same(a[1], do(2)[1])

def test_every_option_counts():
    "`train_agent` beside the loop by hand, with other settings than the defaults."
    run = an_agent()
    train_agent(run, 'CartPole-v1', steps=12, envs=3, length=7, gamma=.8, entropy_weight=.3, lr=lambda step: .01/(step + 1), **FEW)
    other = an_agent()
    advance(other, actor_critic(entropy_weight=.3), seeded(rollouts(other, 'CartPole-v1', 3, 7, .8), 0), 12,
            [RateOfStep(lambda step: .01/(step + 1)), ClipGradient(.5)])
    assert same(run.net.state_dict(), other.net.state_dict())
    for change in (dict(gamma=.9), dict(entropy_weight=0.), dict(lr=None), dict(envs=2), dict(length=6)):
        given = dict(envs=3, length=7, gamma=.8, entropy_weight=.3, lr=lambda step: .01/(step + 1)) | change
        third = an_agent()
        train_agent(third, 'CartPole-v1', steps=12, **given, **FEW)
        assert not same(run.net.state_dict(), third.net.state_dict()), change

def test_a_wrong_clip():
    with pytest.raises(ValueError, match='clip=0 must be'): train_agent(an_agent(), 'CartPole-v1', steps=2, clip=0, **FEW)

@pytest.mark.parametrize('options, want', ((dict(), .5), (dict(clip=.2), .2)))
def test_the_gradient_is_clipped(options, want):
    lengths = []
    class Length(Hook):
        def before_step(self, run): lengths.append(sum(p.grad.square().sum() for p in run.net.parameters()).sqrt().item())
    train_agent(an_agent(), 'CartPole-v1', steps=12, hooks=[Length()], **FEW, **options)  # after the clipping
    assert max(lengths) == pytest.approx(want, abs=1e-4)

def test_dropout_only_while_training():
    "Test episodes are played in evaluation mode, and each layer has its mode afterwards."
    torch.manual_seed(0)
    net = ActorCritic(4, 2, 16)
    net.policy.tanh1 = nn.Sequential(nn.Tanh(), nn.Dropout(.5))
    run = Run(net, torch.optim.Adam(net.parameters(), lr=3e-3), full_masks(net), 0)
    out = train_agent(run, 'CartPole-v1', steps=20, length=16, **(FEW | dict(test=10)))
    assert net.policy.tanh1.training
    with evaluating(net): assert out['end_return'] == play(net.policy, 'CartPole-v1', episode_seeds(0, 'test', 10)).mean()

@pytest.mark.parametrize('wrong, says', ((dict(envs=0), 'envs'), (dict(length=0), 'length'), (dict(gamma=1.5), 'gamma'),
    (dict(steps=0), 'steps'), (dict(validation=0), 'validation'), (dict(test=0), 'test'), (dict(eval_every=0), 'eval_every')))
def test_wrong_sizes(wrong, says):
    with pytest.raises(ValueError, match=says): train_agent(an_agent(), 'CartPole-v1', **(dict(steps=2) | wrong))

# --- environments

def test_an_environment_that_is_not_installed(monkeypatch):
    "Gymnasium itself, and what a task needs beside it."
    monkeypatch.setitem(sys.modules, 'Box2D', None)
    for name in [o for o in sys.modules if o.startswith('gymnasium.envs.box2d')]: monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'LunarLander-v3 needs more.*lotterybook\[control\]'): make_env('LunarLander-v3')
    monkeypatch.setitem(sys.modules, 'gymnasium', None)
    with pytest.raises(ImportError, match=r'pip install "lotterybook\[control\]"'): make_env('CartPole-v1')

class From1(Counter):
    action_space = gymnasium.spaces.Discrete(3, start=1)

class Switches(Counter):
    action_space = gymnasium.spaces.MultiBinary(3)

the_same = Counter()

@pytest.mark.parametrize('env, says', (('CartPol-v1', 'CartPole'), ('CartPole-v9', 'v9'), ('Pendulum-v1', 'one of the actions 0, 1'),
                                       ('FrozenLake-v1', 'a vector of numbers'), (From1, 'one of the actions 0, 1'),
                                       (Switches, 'one of the actions'), (the_same, 'nor a function that makes one'),
                                       (lambda: the_same, 'must make a new one'), (lambda: None, 'gives a NoneType, not an environment')))
def test_an_environment_that_does_not_fit(env, says):
    with pytest.raises(ValueError, match=says): make_env(env)

def test_an_environment_and_a_network_of_ones_own():
    "A function that makes it; policy and value that share a layer, whose weight has one mask."
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            body = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
            self.policy, self.value = nn.Sequential(body, nn.Linear(8, 2)), nn.Sequential(body, nn.Linear(8, 1))
        def forward(self, x): return self.policy(x), self.value(x).squeeze(-1)
    def make(seed):
        net = Shared()
        return Run(net, torch.optim.Adam(net.parameters()), full_masks(net), seed)
    def train(run): return train_agent(run, partial(Counter, limit=9), steps=6, **FEW)
    with warnings.catch_warnings(action='ignore', category=NotLearned):  # every action is as good
        found = find_ticket(make, train, pruner(.5), rounds=1, progress=False)
    assert len(found[1].masks) == 3 and remaining(found[1].masks) == pytest.approx(.5, abs=.05)

# --- searches

QUICK = dict(rounds=2, rate=.5, hidden=8, length=4, steps=12, eval_every=6, validation=2, test=2, envs=2)

@pytest.mark.parametrize('changes', (dict(), dict(env='Acrobot-v1'), dict(rewind_step=4), dict(optimizer='adam', lr=3e-3)))
def test_a_search_with_controls(tmp_path, changes):
    settings = control_settings(**(QUICK | changes))
    plan = search_plan(2, [0], ['ticket', 'permuted', 'reinit', 'shuffled', 'random'], [2])
    do = partial(search, plan=plan, out=tmp_path, parts=control_parts, workers=1, progress=False)
    rows = do(settings)
    assert [r['condition'] for r in rows] == ['ticket']*3 + ['reinit', 'shuffled', 'random', 'permuted']
    assert all(isinstance(r['learned'], bool) for r in rows) and do(settings) == rows
    width, (inputs, actions) = settings['hidden'], SIZES[settings['env']]
    kept = total = 0
    for n, rate in ((inputs*width, .5), (width*width, .5), (actions*width, .25), (inputs*width, .5), (width*width, .5), (width, .25)):
        total += n
        for _ in range(2): n -= round(rate*n)
        kept += n
    assert rows[2]['remaining'] == kept/total  # output layers at half the rate
    (effects,) = mask_and_weights(rows + [r | dict(seed=1) for r in rows], 'end_return')
    assert effects['round'] == 2
    with pytest.raises(ValueError, match='gamma'): do(settings | dict(gamma=.5))

@pytest.mark.parametrize('wrong, says', ((dict(env='Pong'), 'Pong'), (dict(stps=3), 'stps'), (dict(rate=1), 'rate'),
    (dict(optimizer='sgd'), 'sgd'), (dict(lr=0), 'lr'), (dict(rewind_step=20_000), 'leaves nothing'), (dict(test=0), 'test'),
    (dict(gamma=1.5), 'gamma'), (dict(gamma='x'), 'gamma'), (dict(entropy_weight='a'), 'entropy_weight'), (dict(decay='no'), 'decay'),
    (dict(lr=float('inf')), 'lr'), (dict(lr='a'), 'lr'), (dict(output_scale=6.), 'output_scale'), (dict(output_scale=-1), 'output_scale')))
def test_wrong_settings(wrong, says):
    with pytest.raises(ValueError, match=says): control_settings(**wrong)

@pytest.mark.parametrize('condition', ('ticket', 'reinit', 'random'))
def test_controls_of_a_rewound_search_resume_their_episodes(condition):
    "Their first steps have a seed of their own: long enough that episodes have ended before the rewind."
    changes = dict(rewind_step=60, steps=80, hidden=16, eval_every=20, validation=1, test=1)
    make_run, train, _ = control_parts(control_settings(**changes))
    run = first_run(make_run, 0) if condition == 'ticket' else first_run(make_run, 0, condition, 1)
    episodes = [(e['seed'], e['number'], list(e['actions'])) for e in run.extra['episodes']]
    assert run.step == 60 and all(number >= 8 for _, number, _ in episodes)
    begun = mixed_seed(run.seed, 'episode', episodes[0][1]) % 2**31
    assert (episodes[0][0] == begun) == (condition == 'ticket')
    games = _Games(make_env('CartPole-v1'), 8, run)
    games.resume()
    for (seed, _, actions), now in zip(episodes, games.now):
        game = gymnasium.make('CartPole-v1')
        seen = game.reset(seed=seed)[0]
        for action in actions: seen = game.step(action)[0]
        assert (seen == now).all()
    games.close()
    train(run)
    assert run.step == 80

def test_rounds_of_a_rewound_search():
    "They begin after k updates of the dense agent, and its validations are not theirs."
    make_run, train, prune = control_parts(control_settings(**(QUICK | dict(rewind_step=6, eval_every=3))))
    run = first_run(make_run, 0)
    assert run.step == 6 and not run.rows and 'best' not in run.extra
    found = find_ticket(make_run, train, prune, rounds=1, progress=False)
    for ticket in found: assert [o['step'] for o in ticket.settings['outcome']['history']] == [9, 12]
    assert same(found[0].theta_0, snapshot(run.net))

def test_published_settings():
    "RL Baselines3 Zoo's; names of inputs fit the environments, and the falling rate would end at 0."
    assert {k: (o['steps'], o['envs'], o['gamma'], o['lr'], o['decay'], o['entropy_weight']) for k, o in AGENTS.items()} == {
        'CartPole-v1': (12_500, 8, .99, 7e-4, False, 0), 'Acrobot-v1': (6250, 16, .99, 7e-4, False, 0),
        'LunarLander-v3': (5000, 8, .995, 8.3e-4, True, 1e-5)}
    optimizer = first_run(control_parts(control_settings())[0], 0).optimizer
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert [optimizer.defaults[k] for k in ('lr', 'alpha', 'eps', 'momentum')] == [7e-4, .99, 1e-5, 0]
    for env, names in INPUTS.items(): assert len(names) == SIZES[env][0] and env in AGENTS
    seen = []
    settings = control_settings('CartPole-v1', **(QUICK | dict(decay=True, lr=1.2e-3)))
    make_run, train, _ = control_parts(settings)
    run = make_run(0)
    step = run.optimizer.step
    run.optimizer.step = lambda: (seen.append(run.optimizer.param_groups[0]['lr']), step())
    train(run)
    assert seen == pytest.approx([1.2e-3*(1 - k/12) for k in range(12)])

# --- mask and weights, paths

def rows_of(table, seeds=2, **more):
    return [dict(seed=s, round=1, condition=c, remaining=.5, end_return=v + s, learned=True) | more
            for s in range(seeds) for c, v in table.items()]

def test_effects():
    "From random masks to the ticket's mask, to its values, to their order; they add up to the lead."
    rows = rows_of(dict(ticket=480, permuted=472, reinit=460, shuffled=230, random=210))
    (e,) = mask_and_weights(rows, 'end_return')
    assert e['mask'] == (240, 240, 240) and (e['values'][0], e['order'][0]) == (12, 8) and (e['round'], e['remaining']) == (1, .5)
    assert e['by_seed'] == {s: dict(mask=240, values=12, order=8) for s in range(2)}
    with pytest.raises(ValueError, match='round 1, seed 0 has no permuted'):
        mask_and_weights(rows_of(dict(ticket=1, shuffled=1, random=1)), 'end_return')
    lacking = [r for r in rows if (r['seed'], r['condition']) != (1, 'random')]
    with pytest.raises(ValueError, match='round 1, seed 1 has no random'): mask_and_weights(lacking, 'end_return')

def test_rows_of_two_environments():
    "They would overwrite each other."
    rows = rows_of(dict(ticket=480, permuted=470, reinit=460, shuffled=230, random=210))
    for call in (partial(mask_and_weights, value='end_return'), unlearned, draw_returns):
        with pytest.raises(ValueError, match='two rows of round 1, seed 0, ticket'): call(rows + rows)

def test_who_never_left_the_floor():
    rows = rows_of(dict(ticket=480, random=9), seeds=3)
    assert unlearned(rows) == 'did not learn: no agent'
    for r in rows: r['learned'] = r['condition'] == 'ticket' or r['seed'] == 1
    assert unlearned(rows) == 'did not learn: random at 50.0%: 2 of 3'

def test_paths_by_enumeration():
    masks = {f'policy.layer{i}.weight': torch.rand(n, m) < .5 for i, (m, n) in enumerate(((3, 5), (5, 4), (4, 2)))}
    a, b, c = masks.values()
    count = torch.zeros(2, 3, dtype=torch.long)
    for i, j, k, l in product(range(3), range(5), range(4), range(2)): count[l, i] += a[j, i] & b[k, j] & c[l, k]
    assert paths(masks | {'value.layer1.weight': torch.ones(9, 9) > 0}).equal(count)
    with pytest.raises(ValueError, match="no mask of 'critic'"): paths(masks, 'critic')
    deep = {f'policy.{2*i}.weight': torch.rand(6, 6) < .4 for i in range(7)}
    assert paths(dict(sorted(deep.items()))).equal(paths(deep)) and list(dict(sorted(deep.items()))) != list(deep)
    with pytest.raises(ValueError, match='has 4 inputs, and the layer before it 5'): paths({k: masks[k] for k in (*list(masks)[:1], *list(masks)[2:])})

def test_an_input_without_a_path_is_not_read():
    run = an_agent()
    run.set_masks(run.masks | {k: torch.rand(m.shape) < .15 for k, m in run.masks.items() if k.startswith('policy')})
    counts, x = paths(run.masks).sum(0), torch.randn(4, requires_grad=True)
    run.net.policy(x).abs().sum().backward()
    assert ((counts == 0) == (x.grad == 0)).all() and (counts == 0).any() and (counts > 0).any()

def test_pictures():
    import matplotlib.pyplot as plt
    rows = [r | dict(remaining=1., round=0) for r in rows_of(dict(ticket=400))] + rows_of(dict(ticket=300, random=9))
    rows[-1]['learned'] = False
    ax = draw_returns(rows, floor=20)
    hollow = [line for line in ax.lines if line.get_marker() == 'o' and line.get_markerfacecolor() == 'none']
    assert len(hollow) == 1 and hollow[0].get_ydata()[0] == rows[-1]['end_return']
    masks = an_agent().masks
    ax = draw_inputs([masks, {k: m & (torch.arange(m.shape[1]) > 0) for k, m in masks.items()}], INPUTS['CartPole-v1'])
    assert [t.get_text() for t in ax.texts] == ['25%', '–', '25%', '33%', '25%', '33%', '25%', '33%']
    plt.close('all')
