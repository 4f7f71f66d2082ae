"""Is a training healthy? What SageMaker Debugger and Profiler watched, as pure rules on each worker's epochs.

findings = check(history, HealthConfig())
write_findings(findings, path)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from train.health_config import HealthConfig
from train.health_loss_rules import LOSS_RULES
from train.health_record import EpochHealth
from train.health_rules import LEARNING_RULES, Finding, Rule
from train.health_system_rules import SYSTEM_RULES

RULES: Final[tuple[Rule, ...]] = (*LEARNING_RULES, *LOSS_RULES, *SYSTEM_RULES)


def check(history: Sequence[EpochHealth], config: HealthConfig) -> list[Finding]:
    """What is wrong with a training, the gravest first.

    Args:
        history: the epochs of one worker so far, from the first on.
        config: when a rule fires.
    """
    if not history:
        return []
    found = [finding for rule in RULES if (finding := rule(history, config)) is not None]
    return sorted(found, key=lambda finding: (finding.severity != "stop", finding.epoch))


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Write `health.json`: every rule that was asked, and what each found."""
    asked = [rule.__name__ for rule in RULES]
    path.write_text(json.dumps({"rules": asked, "findings": [asdict(f) for f in findings]}, indent=2) + "\n")
