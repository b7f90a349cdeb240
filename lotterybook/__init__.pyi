__version__: str

from .tickets.iterative import find_ticket as find_ticket
from .tickets.ticket_files import (
    Ticket as Ticket, save_ticket as save_ticket, load_ticket as load_ticket,
    ticket_to_torch as ticket_to_torch, ticket_from_torch as ticket_from_torch)
from .tickets.small_fast_file import (
    save_compact as save_compact, load_compact as load_compact,
    without_dead_units as without_dead_units, to_csr as to_csr)
from .tickets.rewinding import rewind as rewind
from .tickets.late_rewinding import rewound_to as rewound_to
from .tickets.controls import control_run as control_run
from .tickets.replicates import (
    search as search, search_settings as search_settings, search_plan as search_plan,
    draw_search as draw_search)
from .tickets.rounds import trained as trained
from .tickets.retraining import prune_and_retrain as prune_and_retrain
from .tickets.early_bird import EarlyBird as EarlyBird
from .pruning.masks import (
    prunable as prunable, full_masks as full_masks, masks_from_zeros as masks_from_zeros,
    masks_from_state_dict as masks_from_state_dict, apply_masks as apply_masks,
    remaining as remaining, report as report, mask_coverage as mask_coverage)
from .pruning.scores import magnitude as magnitude
from .sparse_training.snip import snip as snip, prune_to as prune_to
from .sparse_training.grasp import grasp as grasp
from .sparse_training.synflow import synflow as synflow
from .sparse_training.moving_masks import (
    SET as SET, random_masks as random_masks, finish_step as finish_step)
from .sparse_training.rigl import RigL as RigL, GradualPruning as GradualPruning
from .sparse_training.sparse_steps import train_sparse as train_sparse
from .sparse_training.sparse_convolutions import sparse_run as sparse_run
from .pruning.allocation import per_layer as per_layer, global_ as global_
from .pruning.schedules import pruner as pruner, rate_for as rate_for
from .pruning.structured_pruning import (
    remove_channels as remove_channels, choose_channels as choose_channels)
from .pruning.masked_training import keep_pruned as keep_pruned
from .foundations.running import Run as Run, Hook as Hook, advance as advance
from .foundations.fast_steps import FusedAdam as FusedAdam
from .foundations.training import (
    train as train, train_run as train_run, evaluate as evaluate, batch_order as batch_order)
from .foundations.results import paired_interval as paired_interval, read_rows as read_rows
from .foundations.claims import decide as decide
from .foundations.data import (
    load as load, from_tensors as from_tensors, from_dataset as from_dataset)
from .foundations.language_data import (
    corpus_from_files as corpus_from_files, corpus_from_lines as corpus_from_lines)
from .foundations.networks import lenet as lenet
from .foundations.sweeps import sweep as sweep
from .ordered_neurons.cumax import cumax as cumax
from .ordered_neurons.on_lstm import ONLSTM as ONLSTM
from .ordered_neurons.word_model import (
    LanguageModel as LanguageModel, save_language_model as save_language_model,
    load_language_model as load_language_model)
from .ordered_neurons.language_model import fit_lm as fit_lm
from .ordered_neurons.syntactic_distance import (
    parse as parse, word_gates as word_gates, draw_gates as draw_gates, draw_tree as draw_tree,
    draw_boxes as draw_boxes)
from .ordered_neurons.constituency import corpus_f1 as corpus_f1
from .tools.find import find as find
from .tools.compare import compare as compare
