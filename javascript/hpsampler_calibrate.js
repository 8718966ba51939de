// Keeps the Calibrate tab's status fresh: once when the tab is opened, then for as long as a calibration is under way.
(() => {
    const EVERY_MS = 1500;
    let opened = false;

    function look() {
        const tab = gradioApp().querySelector("#tab_hpsampler_calibrate");
        const visible = tab && tab.offsetParent !== null && !document.hidden;
        if (!visible) {
            opened = false;
            return;
        }
        const status = tab.querySelector(".hpsampler-status");
        if (opened && status && status.dataset.state !== "running") return;
        opened = true;
        const button = tab.querySelector("#hpsampler_calibrate_look");
        if (button) button.click();
    }

    onUiLoaded(() => setInterval(look, EVERY_MS));
})();
