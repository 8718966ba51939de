"""The door that the WebUI finds; everything behind it is in ``hpsampler.webui``."""

import sys

# The host loads this file anew on "Reload UI" but keeps packages: without this, an updated extension runs its old code.
for _name in [name for name in sys.modules if name.partition(".")[0] == "hpsampler"]:
    del sys.modules[_name]

try:
    from hpsampler.webui.script import HPSamplerScript, install

    install()
except Exception as error:
    from hpsampler.webui.fallback import script_that_says

    _sentence = f"HP Sampler could not be loaded and does nothing ({type(error).__name__}: {error})."
    print(_sentence)
    HPSamplerScript = script_that_says(_sentence)  # type: ignore[misc]
