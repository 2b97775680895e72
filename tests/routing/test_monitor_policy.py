"""The policy's section [monitor]: read strictly, and written as it is read."""

from __future__ import annotations

import pytest

from overspill.errors import ConfigurationError
from overspill.routing.monitor_policy import MonitorPolicy
from overspill.routing.policy import RoutingPolicy, parse_policy

TEXT = """
version = "1"
[monitor]
model = "brook"
quantization = "F32"
runtime = "llama.cpp"
cloud = "river"
threshold = 0.15
clear = -0.1
hold_tokens = 16
lean = 0.3
state_ids = [3, 17]
[monitor.certificate]
auc = 0.81
method = "ridge"
[monitor.heads.0]
bias = [0.6, 0.9]
state_0 = [0.1, -0.2]
[monitor.heads.end]
mean_logprob = [0.2, 0]
"""


def test_the_section_is_read_and_written_back():
    monitor = parse_policy(TEXT).monitor
    assert monitor.heads["0"]["bias"] == (0.6, 0.9)
    assert monitor.heads["end"]["mean_logprob"] == (0.2, 0.0)
    assert (monitor.state_ids, monitor.hold_tokens, monitor.unsure) == ((3, 17), 16, 0.5)
    assert MonitorPolicy.from_table(monitor.to_table()) == monitor


def test_the_monitor_is_in_the_policys_hash():
    monitor = parse_policy(TEXT).monitor
    assert RoutingPolicy().sha256 != RoutingPolicy(monitor=monitor).sha256


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('model = "brook"', "", "monitor.model"),
        ('model = "brook"', "model = 3", "monitor.model"),
        ("lean = 0.3", "leen = 0.3", "monitor.leen"),
        ("lean = 0.3", "lean = true", "monitor.lean"),
        ("lean = 0.3", "lean = nan", "monitor.lean"),
        ("lean = 0.3", "lean = 2", "monitor.lean"),
        ("clear = -0.1", "clear = 0.5", "monitor.clear"),
        ("hold_tokens = 16", "hold_tokens = -1", "monitor.hold_tokens"),
        ("hold_tokens = 16", "hold_tokens = 1.5", "monitor.hold_tokens"),
        ("state_ids = [3, 17]", 'state_ids = "3"', "monitor.state_ids"),
        ("state_ids = [3, 17]", "state_ids = [3.5]", "monitor.state_ids"),
        ("[monitor.heads.0]", "[monitor.heads.7]", "monitor.heads"),
        ("bias = [0.6, 0.9]", "bias = 0.6", "monitor.heads.0.bias"),
        ("bias = [0.6, 0.9]", "bias = [0.6]", "monitor.heads.0.bias"),
        ("bias = [0.6, 0.9]", "bias = [0.6, inf]", "monitor.heads.0.bias"),
        ('method = "ridge"', "method = []", "monitor.certificate.method"),
    ],
)
def test_a_mistake_is_named(old, new, named):
    assert old in TEXT
    with pytest.raises(ConfigurationError) as caught:
        parse_policy(TEXT.replace(old, new))
    assert named in str(caught.value)
