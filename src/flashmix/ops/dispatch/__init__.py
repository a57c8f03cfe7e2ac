"""Which implementation of an op runs: one decision, which calls and ``explain`` share.

``signature`` is what a call is; ``implementation`` what can run it; ``tables`` and ``costs`` what
that costs; ``operator`` decides; ``recording`` keeps what was decided.
"""

from flashmix.ops.dispatch.implementation import Implementation
from flashmix.ops.dispatch.operator import Decision, Operator, explain_choice
from flashmix.ops.dispatch.recording import Choice, implementations_by_op, recorded_choices
from flashmix.ops.dispatch.signature import SIZE_OPTIONS, Direction, Signature

__all__ = [
    "SIZE_OPTIONS",
    "Choice",
    "Decision",
    "Direction",
    "Implementation",
    "Operator",
    "Signature",
    "explain_choice",
    "implementations_by_op",
    "recorded_choices",
]
