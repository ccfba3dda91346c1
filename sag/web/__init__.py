"""The way in: the socket, the HTTP facade, server-sent events, files, the page; identity and limits before them."""
