// Keeps the Calibrate tab's status fresh: once when the tab is opened, then for as long as something is under way.
// What is started comes into view, as on a narrow page its progress is far below the button.
(() => {
    // the page loads the scripts of a second copy of the extension too
    if (window.hpsamplerCalibrate) return;
    window.hpsamplerCalibrate = true;
    const EVERY_MS = 1500;
    const find = (name) => gradioApp().querySelector(`#hpsampler_calibrate_${name}`);
    let opened = false;

    function refresh() {
        const shown = find("status");
        if (!shown || shown.offsetParent === null || document.hidden) {
            opened = false;
            return;
        }
        sayWhatTheAccordionsName();
        const state = shown.querySelector(".hpsampler-status")?.dataset.state;
        if (opened && state && !["running", "unknown"].includes(state)) return;
        opened = true;
        find("refresh")?.click();
    }

    function sayWhatTheAccordionsName() {
        for (const line of find("details").querySelectorAll("[data-named]")) {
            const named = gradioApp().querySelector(`#${line.dataset.menu} input`)?.value.split("; ") || [];
            line.hidden = !named.some((each) => [each, each.replace(/ [0-9a-f]{8}$/, "")].includes(line.dataset.named));
        }
    }

    function intoView({target}) {
        if (!target.closest?.("#hpsampler_calibrate_start, #hpsampler_calibrate_resume")) return;
        find("status")?.scrollIntoView({block: "nearest", behavior: "smooth"});
    }

    onUiLoaded(() => {
        gradioApp().addEventListener("click", intoView);
        onUiUpdate(sayWhatTheAccordionsName);
        setInterval(refresh, EVERY_MS);
    });
})();
