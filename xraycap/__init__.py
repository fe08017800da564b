"Chest X-ray captioning: two radiographs in, the findings paragraph out."
from importlib import import_module

__version__ = "0.1.0"

_names_of = {
    "files": "cache_dir writable_folder find_archive whole_file",
    "reports": "load_reports",
    "views": "CLUES view_clues clue_weights view_table image_views",
    "studies": "SPLITS two_images chen_split split_studies load_studies studies_table studies_of",
    "downloads": "DOWNLOADS fetch extract download",
    "mesh": "FINDINGS finding_codes mesh_findings finding_sides",
    "text": "clean_findings clean_chen Vocab",
    "encoder": "CheXNet FindingNet save_encoder load_finding_net",
    "weights": "load_weights default_weights",
    "features": "FeatureStore store_features",
    "batches": "caption_dls",
    "lstm": "LSTMDecoder caption_learner",
    "attention": "AttentionDecoder",
    "transformer": "TransformerDecoder",
    "search": "greedy_search beam_search",
    "fast": "fused",
    "metrics": "corpus_bleu",
    "findings": "label_findings",
    "models": "decoder_names model_files check_out save_model find_model load_model generate describe",
    "targets": "consensus_reports report_weights composed_reports",
    "training": "cross_codes start_from_findings PointAtFindings train_captioner",
    "results": "score_card evaluate baselines nearest results_table paired_bootstrap findings_table",
    "captioner": "Captioner",
    "widgets": "study_browser phantom_sliders attention_explorer beam_explorer",
}
_module_of = {name: module for module, names in _names_of.items() for name in names.split()}
__all__ = list(_module_of)


def __getattr__(name):
    "A public name, imported from its module when it is first asked for: `import xraycap` itself costs nothing."
    if name not in _module_of: raise AttributeError(f"module 'xraycap' has no attribute '{name}'")
    return getattr(import_module(f".{_module_of[name]}", __name__), name)


def __dir__(): return [*globals(), *__all__]
