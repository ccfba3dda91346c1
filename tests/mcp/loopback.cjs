// Preloaded by `node -r`: a server listens on 127.0.0.1 alone, whatever it asks for. The conformance suite and
// server-everything would listen on all interfaces.
const net = require('net')

const listen = net.Server.prototype._listen2
net.Server.prototype._listen2 = function (address, port, type, ...rest) {
    const tcp = typeof port === 'number' && port >= 0
    return tcp ? listen.call(this, '127.0.0.1', port, 4, ...rest) : listen.call(this, address, port, type, ...rest)
}
