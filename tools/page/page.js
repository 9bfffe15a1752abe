// A picture from the clipboard, wherever on the page it is pasted, goes the way of an upload.
() => {
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
