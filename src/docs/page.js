// Gives each block of code a button that copies it.
export function copyable(pre) {
  const frame = document.createElement('div');
  frame.className = 'copied';
  const button = Object.assign(document.createElement('button'), { type: 'button', textContent: 'Copy' });
  button.addEventListener('click', async () => {
    button.textContent = await copy(pre) ? 'Copied' : 'Select it';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
  // A keyboard reaches what is outside of the frame, too.
  pre.tabIndex = 0;
  pre.replaceWith(frame);
  frame.append(pre, button);
  return frame;
}

async function copy(pre) {
  try {
    await navigator.clipboard.writeText(pre.textContent);
    return true;
  } catch {
    // Browsers allow it only on https and localhost: the text is selected instead.
    getSelection().selectAllChildren(pre);
    return false;
  }
}

for (const pre of document.querySelectorAll('main pre')) copyable(pre);
