/** Mermaid, held to drawing alone; a chunk of its own, loaded with the first diagram. */
import mermaid from 'mermaid';

let last = 0;

/** The diagram as SVG text. @throws Error where the source is no diagram. */
export async function draw(source: string, scheme: 'light' | 'dark'): Promise<string> {
  mermaid.initialize({
    startOnLoad: false,
    securityLevel: 'strict',
    suppressErrorRendering: true,
    theme: scheme === 'dark' ? 'dark' : 'neutral',
    fontFamily: 'system-ui, sans-serif',
    htmlLabels: false,
    flowchart: { htmlLabels: false },
    secure: [
      'secure', 'securityLevel', 'startOnLoad', 'maxTextSize', 'suppressErrorRendering', 'maxEdges', 'htmlLabels', 'flowchart',
      'theme', 'themeCSS', 'themeVariables', 'fontFamily',
    ],
  });
  last += 1;
  const { svg } = await mermaid.render(`diagram-${last}`, source);
  return svg;
}
