"Names that other people's scripts may use: what `xraycap` once offered stays importable from it, moved or renamed."
import pytest

import xraycap

MOVED = """
    AttentionDecoder Beads CLUES Captioner CheXNet DOWNLOADS FINDINGS FeatureStore LSTMDecoder PointAtFindings
    Report SPLITS Solid TransformerDecoder View Vocab assets attention_explorer beam_explorer beam_search
    cache_dir caption_dls caption_learner chen_split clean_chen clean_findings clue_weights composed_reports
    consensus_reports corpus_bleu cross_codes decoder_names describe download evaluate example_study extract fetch
    find_archive find_model finding_codes finding_sides fused generate greedy_search image_views label_findings
    load_model load_reports load_studies load_weights mask_places mesh_findings model_files notice overlay
    phantom_sliders pointing_game report_figure report_weights save_model score_card sentence_maps split_studies
    start_from_findings store_features studies_of studies_table study_browser train_captioner two_images
    view_clues view_table whole_file writable_folder
""".split()


@pytest.mark.parametrize("name", MOVED)
def test_a_moved_name_is_importable(name): assert hasattr(xraycap, name)


@pytest.mark.parametrize("old, new", [
    ("grow", "beam_tree"), ("check_out", "check_model_folder"), ("Download", "Source"), ("CheXNet", "ImageEncoder")])
def test_a_renamed_thing_keeps_its_old_name(old, new): assert getattr(xraycap, old) is getattr(xraycap, new)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"): getattr(xraycap, "nothing")
    assert {"Captioner", "load_studies"} <= set(dir(xraycap))
