// Keeps the Calibrate tab's status fresh: once when the tab is opened, then for as long as something is under way.
// What is started comes into view, as on a narrow page its progress is far below the button.
(() => {
    // the page loads the scripts of a second copy of the extension too
    if (window.hpsamplerCalibrate) return;
    window.hpsamplerCalibrate = true;
    const find = (name) => gradioApp().querySelector(`#hpsampler_calibrate_${name}`);
    let [opened, pressed, question, next] = [false, "", "", []];

    function refresh() {
        const shown = find("status");
        const state = shown?.querySelector(".hpsampler-status")?.dataset.state;
        const ended = opened && state && !["running", "unknown"].includes(state);
        opened = Boolean(shown?.offsetParent) && !document.hidden;
        if (!opened) return;
        sayWhatTheAccordionsName();
        if (!ended) find("refresh")?.click();
    }

    function sayWhatTheAccordionsName() {
        for (const line of find("details").querySelectorAll("[data-named]")) {
            const named = gradioApp().querySelector(`#${line.dataset.menu} input`)?.value.split("; ") || [];
            line.hidden = !named.some((each) => [each, each.replace(/ [0-9a-f]{8}$/, "")].includes(line.dataset.named));
        }
    }

    // Where the keyboard goes on when the button that was pressed is gone: the first of them that is there.
    const GO_ON = {
        rename: ["new_name textarea", "new_name input"], delete: ["cancel"],
        start: ["stop"], resume: ["stop"], stop: ["start"],
        "cancel rename": ["rename"], "cancel delete": ["delete"], "do rename": ["rename", "import"],
        "do delete": ["chosen input:checked", "import"],
    };
    const isThere = (element) => element && element.offsetParent !== null && !element.disabled;

    function press({target}) {
        const buttons = ["rename", "delete", "do", "cancel", "start", "resume", "stop"];
        const name = buttons.find((each) => find(each)?.contains(target));
        if (!name) return;
        if (["start", "resume"].includes(name)) find("status")?.scrollIntoView({block: "nearest", behavior: "smooth"});
        if (["rename", "delete"].includes(name)) question = name;
        [pressed, next] = [name, GO_ON[name] || GO_ON[`${name} ${question}`] || []];
    }

    function goOn() {
        if (!pressed || isThere(find(pressed))) return;
        const found = next.map(find).find(isThere);
        if (!found) return;
        pressed = "";
        // somebody who has gone elsewhere meanwhile stays there
        if (document.activeElement !== document.body && isThere(document.activeElement)) return;
        found.focus();
        found.select?.();
    }

    onUiLoaded(() => {
        gradioApp().addEventListener("click", press);
        for (const act of [sayWhatTheAccordionsName, goOn]) onUiUpdate(act);
        setInterval(refresh, 1500);
    });
})();
