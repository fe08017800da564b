"Chest X-ray captioning: two radiographs in, the findings paragraph out."
from importlib import import_module

__version__ = "0.1.0"

_module_of = {
    "load_reports": "reports", "load_studies": "reports", "clean_findings": "text", "clean_chen": "text", "Vocab": "text",
    "CheXNet": "encoder", "store_features": "encoder", "caption_dls": "batches", "LSTMDecoder": "lstm", "caption_learner": "lstm",
    "AttentionDecoder": "attention", "TransformerDecoder": "transformer", "greedy_search": "search", "beam_search": "search", "corpus_bleu": "metrics",
    "label_findings": "findings", "score_card": "results", "evaluate": "results", "Captioner": "report",
    "study_browser": "widgets", "phantom_sliders": "widgets", "attention_explorer": "widgets", "beam_explorer": "widgets",
}
__all__ = list(_module_of)


def __getattr__(name):
    "A public name, imported from its module when it is first asked for: `import xraycap` itself costs nothing."
    if name not in _module_of: raise AttributeError(f"module 'xraycap' has no attribute '{name}'")
    return getattr(import_module(f".{_module_of[name]}", __name__), name)


def __dir__(): return [*globals(), *__all__]
