"""The settings files that ``keygen`` and ``init`` write: every key is there, with its meaning."""

import re

import msgspec
import pytest
from flamest.agent.settings import TEMPLATE, AgentSettings
from flamest.base.settings import _struct_of
from flamest.coordinator.admin.config_template import render_config_template
from flamest.coordinator.settings import CoordinatorSettings

SEE_NAME = {"ca", "certificate", "key", "labels", "fingerprint"}  # say themselves what they are
KEY = r"^(?:# )?(?:{key} = |\[\w+\.{key}\])(?P<rest>.*)$"  # a key, or a table of any words


def keys_of(kind) -> list[str]:
    """Return every key of a settings type, those of its tables too."""
    found = []
    for field in msgspec.structs.fields(kind):
        inner = _struct_of(field.type)
        found += keys_of(inner) if inner else [field.encode_name]
    return found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (AgentSettings, TEMPLATE.format(key="ward-3.key")),
        (CoordinatorSettings, render_config_template(["a", "b"], "f" * 64, inputs=384)),
        (CoordinatorSettings, render_config_template(["a", "b"], "f" * 64, inputs=384, recipe="paper")),
    ],
)
def test_every_setting_is_in_its_template_with_a_meaning(kind, text):
    lines = {key: re.findall(KEY.format(key=key), text, re.MULTILINE) for key in keys_of(kind)}
    assert [key for key, found in lines.items() if not found] == []
    silent = [key for key, found in lines.items() if "#" not in "".join(found)]
    assert sorted(set(silent) - SEE_NAME) == []


@pytest.mark.parametrize("inputs", [None, 384])
def test_the_columns_of_the_coordinators_template_line_up(inputs):
    text = render_config_template(["a", "b"], "f" * 64, inputs=inputs, final_evaluation="model")
    starts = {line.index(" # ") for line in text.splitlines() if re.match(r"[a-z_]+ = \S+ +# ", line)}
    assert starts == {29}
