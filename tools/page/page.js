// What the page does in the browser; gradio runs this function once, when the page has loaded.
() => {
  window.actions = {
    pick(event, trigger) {
      const button = event.target.closest("button");
      if (button) trigger("click", { index: Number(button.dataset.index) });
    },
    setOpacity(value) {
      document.documentElement.style.setProperty("--opacity", value);
    },
    save(file) {
      if (!file) return;
      const link = document.createElement("a");
      link.href = file.uri;
      link.download = file.name;
      link.click();
    },
    // on a phone the answer is below the question
    showStage() {
      if (innerWidth < 768) document.querySelector("#stage").scrollIntoView({ behavior: "smooth" });
    },
  };
  // A picture from the clipboard, wherever on the page it is pasted, goes the way of an upload.
  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    const file = pasted.find((one) => one.type.startsWith("image/"));
    const input = document.querySelector("#upload input[type=file]");
    if (!file || !input) return;
    event.preventDefault();
    const files = new DataTransfer();
    files.items.add(file);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
  document.documentElement.dataset.ready = "yes";
}
