"Chest X-ray captioning: two radiographs in, the findings paragraph out."
from importlib import import_module

__version__ = "0.1.0"

_names = {  # module -> its names that `xraycap` offers
    "files": "cache_dir writable_folder find_archive whole_file assets",
    "downloads": "DOWNLOADS Source fetch extract download",
    "reports": "load_reports",
    "views": "CLUES view_clues clue_weights view_table image_views",
    "studies": "SPLITS two_images chen_split split_studies load_studies studies_of studies_table",
    "mesh": "FINDINGS finding_codes mesh_findings finding_sides",
    "body.projection": "Beads Solid View",
    "text": "clean_findings clean_chen Vocab",
    "weights": "load_weights default_weights",
    "encoder": "ImageEncoder CheXNet overlay",
    "features": "FeatureStore store_features",
    "inputs": "input_rule input_warnings",
    "batches": "caption_dls",
    "lstm": "LSTMDecoder",
    "learner": "caption_learner",
    "attention": "AttentionDecoder",
    "indication": "ReadingDecoder WithIndications",
    "pointing": "mask_places pointing_game",
    "search": "beam_tree",
    "decoding": "sample diverse_beams",
    "transformer": "TransformerDecoder",
    "fast": "greedy_search beam_search fast_decoder fused",
    "metrics": "corpus_bleu",
    "findings": "label_findings label_details",
    "models": "decoder_names model_files check_model_folder save_model find_model load_model generate describe",
    "targets": "consensus_reports report_weights composed_reports",
    "training": "cross_codes start_from_findings PointAtFindings train_captioner",
    "predictions": "read_reports write_reports",
    "results": "score_card evaluate",
    "confidence": "judged_sentences fit_confidence confidence_of calibration_error report_confidence",
    "captioner": "Captioner Report example_study notice sentence_maps report_figure",
    "widgets": "study_browser phantom_sliders attention_explorer beam_explorer",
}
_module_of = {name: module for module, names in _names.items() for name in names.split()}
_renamed = {"Download": "Source", "check_out": "check_model_folder", "grow": "beam_tree"}  # the old names go on working
__all__ = list(_module_of)


def __getattr__(name):
    "A public name, imported from its module when it is first asked for: `import xraycap` itself costs nothing."
    new = _renamed.get(name, name)
    if new not in _module_of: raise AttributeError(f"module 'xraycap' has no attribute '{name}'")
    return getattr(import_module(f".{_module_of[new]}", __name__), new)


def __dir__(): return [*globals(), *__all__]
