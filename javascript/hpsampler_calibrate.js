// Keeps the Calibrate tab's status fresh: once when the tab is opened, then for as long as something is under way.
// What is started comes into view, as on a narrow page its progress is far below the button.
(() => {
    const EVERY_MS = 1500;
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
        const told = shown.querySelector(".hpsampler-status");
        if (opened && told && !["running", "unknown"].includes(told.dataset.state)) return;
        opened = true;
        const button = find("refresh");
        if (button) button.click();
    }

    function intoView(event) {
        const names = STARTERS.map((name) => `#${TAB}_${name}`).join(", ");
        const shown = find("status");
        if (shown && event.target.closest && event.target.closest(names)) {
            shown.scrollIntoView({ block: "nearest", behavior: "smooth" });
        }
    }

    onUiLoaded(() => {
        gradioApp().addEventListener("click", intoView);
        setInterval(refresh, EVERY_MS);
    });
})();
