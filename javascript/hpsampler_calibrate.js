// Keeps the Calibrate tab's status fresh: once when the tab is opened, then for as long as something is under way.
// What is started comes into view, as on a narrow page its progress is far below the button.
(() => {
    const TAB = "hpsampler_calibrate";
    const STARTERS = ["start", "resume"];
    let opened = false;

    const find = (name) => gradioApp().querySelector(`#${TAB}_${name}`);

    function refresh() {
        const shown = find("status");
        if (!shown || shown.offsetParent === null || document.hidden) {
            opened = false;
            return;
        }
        sayWhatTheAccordionsName();
        const told = shown.querySelector(".hpsampler-status");
        if (opened && told && !["running", "unknown"].includes(told.dataset.state)) return;
        opened = true;
        find("refresh")?.click();
    }

    function sayWhatTheAccordionsName() {
        for (const line of gradioApp().querySelectorAll(`#${TAB}_details [data-named]`)) {
            const named = gradioApp().querySelector(`#${line.dataset.menu} input`)?.value.split("; ") || [];
            line.hidden = !named.some((each) => [each, each.replace(/ [0-9a-f]{8}$/, "")].includes(line.dataset.named));
        }
    }

    function intoView(event) {
        const pressed = STARTERS.some((name) => find(name)?.contains(event.target));
        if (pressed) find("status").scrollIntoView({ block: "nearest", behavior: "smooth" });
    }

    onUiLoaded(() => {
        gradioApp().addEventListener("click", intoView);
        onUiUpdate(sayWhatTheAccordionsName);
        setInterval(refresh, 1500);
    });
})();
