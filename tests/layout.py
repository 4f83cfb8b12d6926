"""What is wrong with how a page lies in its window: scripts for a browser to run, each of which lists the faults it finds."""

from __future__ import annotations

SMALLEST_LETTERS = 8.0  # CSS pixels

FAULTS = """
(() => {
  const found = [], wide = document.documentElement.clientWidth;
  const say = (what, element, text) => found.push(`${what}: ${element.tagName} ${(text || element.textContent).trim().slice(0, 60)}`);
  if (document.documentElement.scrollWidth > wide) found.push(`the page is ${document.documentElement.scrollWidth} wide on ${wide}`);
  const scrolled = element => element.closest('.wide');
  const folded = element => element.closest('details:not([open])') && !element.closest('summary');
  for (const element of document.body.querySelectorAll('*')) {
    if (element.closest('svg, .unseen') || element.tagName === 'AUDIO' || folded(element)) continue;
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    if (box.width && box.right > wide + 1 && !scrolled(element)) say('beyond the edge', element);
    const scrolls = element.classList.contains('wide');
    if (style.overflowX !== 'visible' && !scrolls && element.scrollWidth > element.clientWidth + 1) say('cut off', element);
    if (style.overflowY !== 'visible' && !scrolls && element.scrollHeight > element.clientHeight + 1) say('cut off', element);
  }
  const overlap = (a, b, slack) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > slack
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2 * slack;
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim());
    const boxes = texts.map(text => text.getBoundingClientRect());
    texts.forEach((text, i) => {
      const box = boxes[i], letters = parseFloat(getComputedStyle(text).fontSize) * frame.width / svg.viewBox.baseVal.width;
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        say(`outside of "${svg.getAttribute('aria-label')}"`, text);
      if (letters < SMALLEST) say(`letters of ${letters.toFixed(1)} px in "${svg.getAttribute('aria-label')}"`, text);
      for (let j = i + 1; j < texts.length; j++)
        if (overlap(box, boxes[j], 1)) say(`"${texts[j].textContent}" lies on it in "${svg.getAttribute('aria-label')}"`, text);
    });
  }
  const layer = element => {
    while (element && !['fixed', 'sticky'].includes(getComputedStyle(element).position)) element = element.parentElement;
    return element;
  };
  const pieces = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("svg, .unseen, option, noscript, script, style") || folded(element)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) if (box.width > 1) pieces.push({box, node, layer: layer(node.parentElement)});
  }
  pieces.sort((a, b) => a.box.top - b.box.top);
  pieces.forEach((one, i) => {
    for (let j = i + 1; j < pieces.length && pieces[j].box.top < one.box.bottom; j++)
      if (pieces[j].node !== one.node && pieces[j].layer === one.layer && overlap(one.box, pieces[j].box, 2))
        say(`"${pieces[j].node.data.trim().slice(0, 40)}" lies on it`, one.node.parentElement, one.node.data);
  });
  return found.slice(0, 20);
})()
""".replace("SMALLEST)", f"{SMALLEST_LETTERS})")
"""Text beyond the edge, cut off, or lying on other text; what scrolls below a fixed bar does not lie on it."""

CONTRASTS = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(n => top[n] * top[3] + below[n] * (1 - top[3]));
  const ground = element => {
    const colours = [];
    for (; element; element = element.parentElement) colours.push(rgba(getComputedStyle(element).backgroundColor));
    return colours.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(n => (n /= 255) <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.getClientRects().length || style.visibility === 'hidden') continue;
    if (element.closest('.unseen, option, noscript, script, style, :disabled')) continue;
    const below = ground(element), colour = over(rgba(style.color), below);
    const [darker, lighter] = [luminance(colour), luminance(below)].sort((a, b) => a - b);
    const ratio = (lighter + 0.05) / (darker + 0.05), size = parseFloat(style.fontSize);
    found.push({text: walker.currentNode.data.trim().slice(0, 40), ratio, large: size >= 24 || (size >= 18.66 && style.fontWeight >= 700)});
  }
  return found;
})()
"""
"""The contrast of every text in sight with what is behind it, by the formula of WCAG 2.2, and whether it counts as large there."""
