"""The door that the WebUI finds; everything behind it is in ``hpsampler.webui``."""

import os
import sys

from modules import scripts


def _another_copy():
    """The script file of another copy of this extension that this start of the WebUI has loaded already, or nothing."""
    here = os.path.realpath(__file__)
    loaded = (each.path for each in scripts.scripts_data if os.path.basename(each.path) == os.path.basename(here))
    return next((path for path in loaded if os.path.realpath(path) != here), "")


if _other := _another_copy():
    print(
        f"HP Sampler: there are two copies of this extension. The one of {_other} is in use, and {__file__} stays out. "
        "Take one of them out of the folder of extensions."
    )
else:
    # The host loads this file anew on "Reload UI" but keeps packages: without this, an updated extension runs its old
    # code.
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
