"What all tests share: tests marked `slow` run only with `pytest --slow`."
import pytest


def pytest_addoption(parser): parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config): config.addinivalue_line("markers", "slow: takes minutes, or compares with a large library; runs with --slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
