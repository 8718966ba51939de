// Keeps the Calibrate tab's status fresh: once when the tab is opened, then for as long as something is under way.
// What is started comes into view, as on a narrow page its progress is far below the button.
(() => {
    const EVERY_MS = 1500;
    const find = (name) => gradioApp().querySelector(`#hpsampler_calibrate_${name}`);
    let opened = false;

    function refresh() {
        const shown = find("status");
        if (!shown || shown.offsetParent === null || document.hidden) {
            opened = false;
            return;
        }
        const state = shown.querySelector(".hpsampler-status")?.dataset.state;
        if (opened && state && !["running", "unknown"].includes(state)) return;
        opened = true;
        find("refresh")?.click();
    }

    function intoView({target}) {
        if (!target.closest?.("#hpsampler_calibrate_start, #hpsampler_calibrate_resume")) return;
        find("status")?.scrollIntoView({block: "nearest", behavior: "smooth"});
    }

    onUiLoaded(() => {
        gradioApp().addEventListener("click", intoView);
        setInterval(refresh, EVERY_MS);
    });
})();
