"""The vendor's own client, imported as it is: its generated code warns of its age."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from eas_prediction import PredictClient, StringRequest  # type: ignore[import-untyped]
    from eas_prediction.exception import PredictException  # type: ignore[import-untyped]

__all__ = ["PredictClient", "PredictException", "StringRequest"]
