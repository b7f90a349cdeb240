"The recorded sentence is what the recorded network computes."
import torch
from lotterybook.foundations.running_sentence import first_tree_file, running_sentence
from lotterybook.ordered_neurons.master_gates import master_gates
from lotterybook.ordered_neurons.syntactic_distance import word_gates
from lotterybook.ordered_neurons.word_model import load_language_model

def test_logits_are_those_of_the_network():
    model, sentence = load_language_model(first_tree_file()), running_sentence()
    ids = model.vocabulary.encode(['<eos>', *sentence.words])
    torch.testing.assert_close(sentence.inputs, model.embedding[ids].detach())
    for layer in (0, 1):
        gates = master_gates(sentence.forget_logits[layer], sentence.input_logits[layer])
        for recorded, computed in zip(gates, word_gates(model, sentence.words, layer)):
            torch.testing.assert_close(recorded, computed, atol=1e-5, rtol=0)

def test_weights_are_those_of_the_network():
    weights = load_language_model(first_tree_file()).encoder.state_dict()
    recorded = running_sentence().weights
    assert recorded.keys() == weights.keys()
    assert all(torch.equal(recorded[name], weights[name]) for name in weights)

def test_tree_has_the_words():
    sentence = running_sentence()
    words = [word for word in sentence.tree.replace('(', ' ').replace(')', ' ').split() if word != 'X']
    assert words == sentence.words
