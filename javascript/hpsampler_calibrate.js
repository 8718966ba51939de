// Keeps the Calibrate tab's status fresh: once when a part of it is opened, then for as long as something is under way.
(() => {
    const EVERY_MS = 1500;
    const PARTS = ["hpsampler_calibrate", "hpsampler_statistics"];
    const opened = new Set();

    function look(part) {
        const shown = gradioApp().querySelector(`#${part}_status`);
        const visible = shown && shown.offsetParent !== null && !document.hidden;
        if (!visible) {
            opened.delete(part);
            return;
        }
        const status = shown.querySelector(".hpsampler-status");
        if (opened.has(part) && status && status.dataset.state !== "running") return;
        opened.add(part);
        const button = gradioApp().querySelector(`#${part}_look`);
        if (button) button.click();
    }

    onUiLoaded(() => setInterval(() => PARTS.forEach(look), EVERY_MS));
})();
