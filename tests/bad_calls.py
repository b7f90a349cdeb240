"Make calls of bad_calls.txt, and write what is wrong with each as a line of JSON."
import faulthandler, json, os, socket, sys, tempfile, warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
import torch
from matplotlib.figure import Figure
from nltk import Tree
from torch import nn
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.data import from_tensors
from lotterybook.foundations.networks import batchnorm_mlp
from lotterybook.foundations.running import Run, advance
from lotterybook.foundations.training import classification, example_batches
from lotterybook.ordered_neurons.formula_batches import encode_pairs, vocabulary
from lotterybook.ordered_neurons.logical_inference import PairClassifier
from lotterybook.ordered_neurons.lstm import layer_weights
from lotterybook.ordered_neurons.on_lstm import ONLSTM
from lotterybook.ordered_neurons.propositional_logic import generate_pairs
from lotterybook.ordered_neurons.reference import example_state_dict
from lotterybook.ordered_neurons.small_grammar import GoldCorpus
from lotterybook.ordered_neurons.text import Vocabulary, in_columns, stream
from lotterybook.ordered_neurons.word_model import LanguageModel
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import full_masks
from lotterybook.pruning.schedules import pruner
from lotterybook.pruning.scores import magnitude
from lotterybook.tickets.ticket_files import Ticket

LIMIT  = 20     # seconds a call: a kernel that is compiled takes some, all others take none
MEMORY = 2**32  # bytes that calls may take

PAIRS = generate_pairs(20)

def small_net():
    "A network with two layers to prune."
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def make_run(seed):
    "As a search wants it."
    net = small_net()
    return Run(net, torch.optim.SGD(net.parameters(), lr=.1), seed=seed)

def train(run):
    "One step, as a search wants it."
    with keep_pruned(run.net, run.masks):
        run.net(torch.ones(2, 4)).sum().backward()
        run.optimizer.step()

def inside(context):
    "What a context gives, and to leave it again."
    with context as given: return given

def raise_(error):
    "Raise it."
    raise error

def threads():
    "An engine for a sweep."
    return ThreadPoolExecutor(1)

def axes():
    "Where to draw."
    return Figure().subplots()

def things():
    "What the calls speak of, made anew for each; a call stands in an empty folder."
    torch.manual_seed(0)
    net, bn = small_net(), batchnorm_mlp(4, 3, (6, 5))
    x, y  = torch.rand(12, 4), torch.arange(12) % 3
    masks = full_masks(net)
    thin  = per_layer(magnitude(net, masks), masks, .5)
    run   = Run(net, torch.optim.SGD(net.parameters(), lr=.1), masks)
    data  = from_tensors(x, y, x, y, .25)
    theta = snapshot(net)
    dense, ticket = Ticket(theta, masks, snapshot(net)), Ticket(theta, thin)
    loss, order, prune = classification(), example_batches(x, y, 4, 0), pruner()
    def steps(hook, x=x): return advance(run, loss, example_batches(x, y, 4, 0), 2, [hook])
    nan, inf, huge, folder = float('nan'), float('inf'), 10**12, Path.cwd()
    def file(name, content=b'nothing'):
        path = folder/name
        path.write_bytes(content)
        return path
    words = ['the', 'child', 'sleeps']
    tree  = Tree.fromstring('(S (NP the child) (VP sleeps))')
    vocab = Vocabulary.of([words])
    lm    = LanguageModel(vocab, 'lstm', 4, [4]).eval()
    columns = in_columns(stream([words]*5, vocab), 2)
    corpus  = GoldCorpus([words]*50, [words]*50, [words]*50, {})
    lstm, seq, h = nn.LSTM(3, 4), torch.rand(5, 2, 3), torch.zeros(2, 4)
    weights, release = layer_weights(lstm), example_state_dict([3, 4], 2)
    on, projected, U, h8 = (ONLSTM(3, 8, chunk_size=4), torch.rand(10, 36), torch.rand(36, 8),
                            torch.zeros(2, 8))
    pairs, tokens = PAIRS, vocabulary(PAIRS)
    encoded    = encode_pairs(pairs, tokens)
    classifier = PairClassifier(len(tokens), nn.LSTM(3, 4))
    rows  = [dict(seed=s, kind=k, loss=s + 1.) for s in range(5) for k in 'ab']
    claim = dict(claim='c', value='loss', compare='difference', kind='a', against_kind='b',
                 side='below', margin=1)
    return locals()

def fits(want, got):
    "Whether what came is what must come."
    return same(got, want) or repr(got) == repr(want)

def wrong(module, call, want):
    "What is wrong with what a call does; '' if nothing is."
    names = globals() | things()
    home  = import_module(f'lotterybook.{module}')
    names |= {name: getattr(home, name) for name in home.__all__}
    expected = eval(want, names) if want else Exception
    refuse = isinstance(expected, type) and issubclass(expected, BaseException)
    try:
        got = eval(call, names)
        return '' if not refuse and fits(expected, got) else f'gives {got!r:.500}'
    except NameError as e: return f'{e}'
    except BaseException as e:
        if left := list(Path.cwd().rglob('*.part')): return f'leaves {left}'
        fine = refuse and isinstance(e, expected) and (str(e) or isinstance(e, MemoryError))
        return '' if fine else f'{type(e).__name__}: {e}'

def main():
    "Read calls as JSON from the standard input."
    out = os.fdopen(os.dup(1), 'w')  # what the library prints goes elsewhere
    os.dup2(2, 1)
    def no_network(*args, **options): raise OSError('no network')
    socket.socket.connect = socket.getaddrinfo = no_network
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    with suppress(ImportError, OSError):
        import resource
        now = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, most))
    for call in json.load(sys.stdin):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            answer = wrong(*call)
            faulthandler.cancel_dump_traceback_later()
            os.chdir('/')
        print(json.dumps(answer), file=out, flush=True)

if __name__ == '__main__': main()
