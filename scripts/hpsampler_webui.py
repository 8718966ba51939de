"""The door that the WebUI finds; everything behind it is in ``hpsampler.webui``."""

import sys

# The host loads this file anew on "Reload UI" but keeps packages: without this, an updated extension runs its old code.
for _name in [name for name in sys.modules if name.partition(".")[0] == "hpsampler"]:
    del sys.modules[_name]

from hpsampler.webui.script import HPSamplerScript, install  # noqa: E402, F401

install()
