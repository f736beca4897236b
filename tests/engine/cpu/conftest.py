"""What the tests of the native step share."""

from __future__ import annotations

import pytest

from puna.kernels import native


@pytest.fixture(params=native.libraries())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the code of each instruction set that this processor has."""
    library = native.libraries()[request.param]
    monkeypatch.setattr(native, "library", lambda: library)
    return str(request.param)
