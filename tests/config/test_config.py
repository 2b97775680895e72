"""Settings: strict files, an environment that may only choose and tighten."""

import pytest

from overspill.config import ENVIRONMENT, load_settings
from overspill.errors import ConfigurationError
from overspill.opening import open_device
from overspill.types.chat import Privacy

DEVICE = {"OVERSPILL_PRIVACY": "device"}
THIRD = "name = 'maker'\nbase_url = 'https://m.example/v1'\nmodel = 'big'\nkey_file = 'key'\n"


def load(tmp_path, text: str, **environ: str):
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True, exist_ok=True)
    (home / "config" / "config.toml").write_text(text)
    return load_settings(environ={"OVERSPILL_HOME": str(home), **environ})


def test_a_full_file_is_read_and_paths_lie_beside_it(tmp_path):
    settings = load(
        tmp_path,
        'model = "echo"\nprivacy = "any"\nrouting_policy = "r.toml"\nprivate_terms = ["Ada"]\n'
        '[cloud]\naddress = "h:1"\ntrust_policy = "t.toml"\n',
    )
    config = tmp_path / "home" / "config"
    assert settings.model == "echo"
    assert settings.privacy is Privacy.ANY
    assert settings.routing_policy == config / "r.toml"
    assert settings.cloud is not None
    assert settings.cloud.trust_policy == config / "t.toml"
    assert settings.private_terms == ("Ada",)
    assert settings.places.state == tmp_path / "home" / "state"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("modell = 1", "modell"),
        ("model = 1", "model"),
        ('privacy = "none"', "privacy"),
        ("isolate = 1", "isolate"),
        ("max_context_tokens = true", "max_context_tokens"),
        ("[cloud]\n", "address"),
        ('[cloud]\naddress = "a"\ntrust = 1', "cloud.trust"),
        ("model = ", "config.toml"),
        ("draft_model = 1", "draft_model"),
        ('speculation = "on"', "speculation"),
        ("adapters = 1", "adapters"),
        ("[adapters]\npoet = 1", "adapters.poet"),
        ("third_party = 1", "third_party"),
        ("[third_party]\nname = 'm'", "base_url"),
        (f"[third_party]\n{THIRD}context = true", "third_party.context"),
        (f"[third_party]\n{THIRD}context = -1", "third_party.context"),
        (f"[third_party]\n{THIRD}context = 9\napi_key = 'k'", "third_party.api_key"),
        (f"[third_party]\n{THIRD}context = 9\nprice_prompt_per_mtok = true", "price_prompt"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_key(tmp_path, text, named):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_provider_is_named_with_a_file_for_its_key(tmp_path):
    settings = load(tmp_path, f"[third_party]\n{THIRD}context = 9\nprice_prompt_per_mtok = 3\n")
    named = settings.third_party
    assert named is not None
    assert (named.name, named.model, named.context, named.tools) == ("maker", "big", 9, False)
    assert named.price_prompt_per_mtok == 3.0
    assert named.key_file == tmp_path / "home" / "config" / "key"


def test_speculation_can_be_switched_off(tmp_path):
    assert load(tmp_path, "").speculation == "auto"
    settings = load(tmp_path, 'model = "brook"\nspeculation = "off"\nisolate = false')
    assert settings.speculation == "off"
    assert open_device(settings)._options.scheduler.speculation == "off"


def test_the_environment_may_only_tighten_the_floor(tmp_path):
    assert load(tmp_path, "", OVERSPILL_PRIVACY="device").privacy is Privacy.DEVICE
    assert load(tmp_path, 'privacy = "device"', OVERSPILL_PRIVACY="any").privacy is Privacy.DEVICE


def test_a_floor_that_was_set_is_only_raised(tmp_path):
    assert load(tmp_path, "").with_floor(Privacy.ANY).privacy is Privacy.ANY
    for settings in (load(tmp_path, 'privacy = "device"'), load(tmp_path, "", **DEVICE)):
        assert settings.with_floor(Privacy.ANY).privacy is Privacy.DEVICE


def test_the_environment_cannot_name_a_trust_policy(tmp_path):
    settings = load(
        tmp_path,
        "",
        OVERSPILL_CLOUD="h:1",
        OVERSPILL_TRUST_POLICY="lax.toml",
        OVERSPILL_CLOUD_TRUST_POLICY="lax.toml",
        OVERSPILL_DEV_UNSAFE="1",
    )
    assert settings.cloud is not None
    assert settings.cloud.trust_policy is None
    assert not any("TRUST" in name or "DEV" in name for name in ENVIRONMENT)


def test_a_settings_file_that_was_named_must_exist(tmp_path):
    with pytest.raises(ConfigurationError, match=r"missing\.toml"):
        load_settings(tmp_path / "missing.toml", environ={})


def test_adapters_lie_beside_the_file_and_go_with_its_model(tmp_path):
    text = (
        'model = "a.gguf"\ndraft_model = "b.gguf"\nmmproj = "eyes.gguf"\n'
        '[adapters]\npoet = "poet.gguf"\n'
    )
    settings = load(tmp_path, text)
    assert settings.adapters == {"poet": tmp_path / "home" / "config" / "poet.gguf"}
    assert settings.draft_model == "b.gguf"
    assert settings.mmproj == tmp_path / "home" / "config" / "eyes.gguf"
    for other in (settings.with_model("c.gguf"), load(tmp_path, text, OVERSPILL_MODEL="c.gguf")):
        assert (other.model, dict(other.adapters), other.draft_model) == ("c.gguf", {}, None)
        assert other.mmproj is None
    assert load(tmp_path, text, OVERSPILL_MODEL="a.gguf") == settings
