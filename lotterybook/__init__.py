"""Ordered neurons and lottery tickets: the library of a book. Begin with one of these.

A ticket: a small network inside yours that learns as well, found with your own loop (page 310)
    def make_run(seed): return Run(YourNet())
    def train_it(run):
        with keep_pruned(run.net, run.masks): your_loop(run.net)
    tickets = find_ticket(make_run, train_it, rounds=5)       # one Ticket a round
    save_ticket, load_ticket, rewind; control_run, trained, decide  # kept; a finding? (page 320)
    save_compact, without_dead_units, remove_channels, to_csr # small files, fast networks (380)
    pruner(.2, magnitude, per_layer)              # other ways to prune; global_, snip, rate_for
    prune_and_retrain(Run(net), ...)                          # a network already trained (page 350)
    train, train_run, evaluate, load('digits'), lenet(64)     # a classifier, if you have none

A pruned network: pruned weights stay exactly zero in any loop (pages 200, 240)
    full_masks(net), masks_from_zeros, apply_masks, report, mask_coverage; RigL, train_sparse

Ordered neurons: an LSTM whose gates show phrases (pages 110, 130)
    ONLSTM(32, 64, chunk_size=2)                              # in place of nn.LSTM; cumax
    model = fit_lm(corpus_from_lines(lines), 'tiny', min_count=2).model  # your text (page 150)
    parse(model, [['a', 'dog', 'barks']])                     # its trees (with nltk); word_gates

Many runs: sweep, search (tickets and controls), compare (methods, yours too), find; then decide.
Each name is in `lotterybook`; dir(lotterybook) lists them, help(lotterybook.find_ticket) explains
the parameters of one. `lotterybook --help` shows the commands, README.md all pages.
"""
from .foundations.front_doors import front_doors as _front_doors

__version__ = '0.2.0'

# Names that are imported when they are first used; `__init__.pyi` has them for type checkers.
__getattr__, __dir__ = _front_doors(__name__, {
    'tickets.iterative': 'find_ticket',
    'tickets.ticket_files': 'Ticket save_ticket load_ticket ticket_to_torch ticket_from_torch',
    'tickets.small_fast_file': 'save_compact load_compact without_dead_units to_csr',
    'tickets.rewinding': 'rewind',
    'tickets.late_rewinding': 'rewound_to',
    'tickets.controls': 'control_run',
    'tickets.replicates': 'search search_settings search_plan draw_search',
    'tickets.rounds': 'trained',
    'tickets.retraining': 'prune_and_retrain',
    'tickets.early_bird': 'EarlyBird',
    'pruning.masks': 'prunable full_masks masks_from_zeros masks_from_state_dict apply_masks '
                     'remaining report mask_coverage',
    'pruning.scores': 'magnitude',
    'sparse_training.snip': 'snip prune_to',
    'sparse_training.grasp': 'grasp',
    'sparse_training.synflow': 'synflow',
    'sparse_training.moving_masks': 'SET random_masks finish_step',
    'sparse_training.rigl': 'RigL GradualPruning',
    'sparse_training.sparse_steps': 'train_sparse',
    'sparse_training.sparse_convolutions': 'sparse_run',
    'pruning.allocation': 'per_layer global_',
    'pruning.schedules': 'pruner rate_for',
    'pruning.structured_pruning': 'remove_channels choose_channels',
    'pruning.masked_training': 'keep_pruned',
    'foundations.running': 'Run Hook advance',
    'foundations.fast_steps': 'FusedAdam',
    'foundations.training': 'train train_run evaluate batch_order',
    'foundations.results': 'paired_interval read_rows',
    'foundations.claims': 'decide',
    'foundations.data': 'load from_tensors from_dataset',
    'foundations.language_data': 'corpus_from_files corpus_from_lines',
    'foundations.networks': 'lenet',
    'foundations.sweeps': 'sweep',
    'ordered_neurons.cumax': 'cumax',
    'ordered_neurons.on_lstm': 'ONLSTM',
    'ordered_neurons.word_model': 'LanguageModel save_language_model load_language_model',
    'ordered_neurons.language_model': 'fit_lm',
    'ordered_neurons.syntactic_distance': 'parse word_gates draw_gates draw_tree draw_boxes',
    'ordered_neurons.constituency': 'corpus_f1',
    'tools.find': 'find',
    'tools.compare': 'compare',
})
