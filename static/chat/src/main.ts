/** Entry point of the chat page. */
import { mount } from 'svelte';
import './app.css';
import './markdown.css';
import App from './components/App.svelte';
import { hub } from './lib/hub.svelte';

hub.start();
mount(App, { target: document.getElementById('app')! });
