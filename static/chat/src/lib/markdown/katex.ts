/** KaTeX with its style and its fonts; a chunk of its own, loaded with the first formula. */
import katex from 'katex';
import 'katex/dist/katex.min.css';

export { katex };
