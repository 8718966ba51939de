"""Networks that a prompt calls by ``<name:arguments>``."""

import re
from collections import defaultdict

activated = []
"""What every call of ``activate`` asked for."""


def parse_prompt(prompt):
    found = defaultdict(list)
    for name, arguments in re.findall(r"<(\w+):([^>]+)>", prompt):
        found[name].append(arguments)
    return re.sub(r"<(\w+):([^>]+)>", "", prompt), found


def activate(p, extra_network_data):
    assert p.scripts is None
    activated.append(dict(extra_network_data))
