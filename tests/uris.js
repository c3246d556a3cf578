// Records in uris.json what Node's driver makes of connection strings, with the versions that the
// original uses: npm install mongoose@8.9.5 && node uris.js > uris.json
const { OPTIONS, parseOptions } = require('mongodb/lib/connection_string.js');

const uris = [
  'mongodb://h', 'mongodb://h/', 'mongodb://h?replicaSet=r', 'mongodb://h/?replicaSet=r',
  'mongodb://h/chat', 'mongodb://h/chat?replicaSet=r', 'mongodb://h/a%2Db', 'mongodb://h/caf%C3%A9',
  'mongodb://h/chat#part', 'mongodb://h/#part', 'mongodb://h/chat ', 'mongodb://h/?dbName=chat',
  'mongodb://h/chat?DBNAME=other', 'mongodb://h/?authSource=admin', 'mongodb://h1,h2:3,h3/chat',
  'mongodb://%2Ftmp%2Fa.sock/chat', 'mongodb://[::1]:27017/chat', 'mongodb://H.Example.com/Chat',
  'mongodb://u:p@h', 'mongodb://u:p@h/', 'mongodb://u:p@h/chat', 'mongodb://u:p@h/?authSource=x',
  'mongodb://u:p@h/chat?authSource=admin', 'mongodb://u:p@h/?dbName=chat', 'mongodb://u@h/chat',
  'mongodb://u%40x:p%2F%3F@h/chat', 'mongodb://u:p+q@h/chat',
  'mongodb+srv://u:p@c.example.com', 'mongodb+srv://u:p@c.example.com/?retryWrites=true&w=majority',
  'mongodb+srv://u:p@c.example.com/?retryWrites=true&w=majority&appName=Cluster0',
  'mongodb+srv://u:p@c.example.com/chat?retryWrites=true&w=majority',
  'mongodb://h/?&retryWrites=true&', 'mongodb://h/?retrywrites=true&retryWrites=false',
  'mongodb://h/?RETRYWRITES=true', 'mongodb://h/?ssl=true&tls=true', 'mongodb://h/?appName=a+b',
  'mongodb://h/?authMechanism=DEFAULT', 'mongodb://u:p@h/?authMechanism=DEFAULT',
  'mongodb://u:p@h/?authMechanism=scram-sha-256', 'mongodb://u:p@h/chat?authMechanism=PLAIN',
  'mongodb://h/?maxPoolSize=0', 'mongodb://h/?maxPoolSize=10x', 'mongodb://h/?connectTimeoutMS=0',
  'mongodb://h/?serverSelectionTimeoutMS=0', 'mongodb://h/?heartbeatFrequencyMS=100',
  'mongodb://h/?readPreference=secondary&readPreferenceTags=dc:ny&readPreferenceTags=',
  'mongodb://h/?w=1&wtimeout=5&j=true&fsync=true', 'mongodb://h/?readConcernLevel=majority',
  'mongodb://h/?maxStalenessSeconds=120&readPreference=nearest', 'mongodb://h/?srvServiceName=x',
  'mongodb://h/?useNewUrlParser=true&useUnifiedTopology=true&family=4&socketTimeoutMS=45000',
  'mongodb://h/?compressors=snappy,zlib&zlibCompressionLevel=6&waitQueueTimeoutMS=9',
  // Refused there.
  'http://h/chat', 'MONGODB://h/chat', 'mongodb://', 'mongodb://h:99999', 'mongodb://h/?nonsense=1',
  'mongodb://h/?useCreateIndex=true', 'mongodb://h/?w=', 'mongodb://h/?retryWrites',
  'mongodb://h/?retryWrites=true&retryWrites=true', 'mongodb://h/?retryWrites=1',
  'mongodb://h/?tls=true&ssl=false', 'mongodb://h/?maxPoolSize=many', 'mongodb://h/?minPoolSize=-1',
  'mongodb://h/?serverApi=1', 'mongodb://u:p/w@h/chat', 'mongodb://u:p?w@h/chat',
  'mongodb://u:p%zz@h', 'mongodb://u:p:q@h', 'mongodb://h1,h2/?directConnection=true',
  'mongodb+srv://h1,h2', 'mongodb+srv://h:1', 'mongodb://h/?tlsInsecure=true&tlsAllowInvalidHostnames=true',
  'mongodb://h/?maxConnecting=0', 'mongodb://h/?authMechanism=bogus', 'mongodb://@h/chat',
];

function read(uri) {
  try {
    const { dbName, credentials } = parseOptions(uri);
    return { uri, database: dbName, source: credentials?.source };
  } catch {
    return { uri, refused: true };
  }
}

// Of each option, a value that is taken, if there is one.
const values = ['true', '4', 'majority', 'secondary', 'zlib', 'PLAIN', 'SERVICE_NAME:x', 'auto',
  'x', 'dc:ny', 'stderr'];
const options = {};
for (const name of Object.keys(OPTIONS)) {
  const taken = value => {
    const more = {
      maxStalenessSeconds: '&readPreference=nearest', readPreferenceTags: '&readPreference=nearest',
      authMechanism: '', authMechanismProperties: '&authMechanism=PLAIN',
      proxyPort: '&proxyHost=h', proxyUsername: '&proxyHost=h&proxyPassword=p',
      proxyPassword: '&proxyHost=h&proxyUsername=p',
    }[name] ?? '';
    return !read(`mongodb://u:p@h/?${name}=${value}${more}`).refused;
  };
  options[name] = values.find(taken) ?? null;
}

process.emitWarning = () => {};
const lines = entries => entries.map(entry => '    ' + JSON.stringify(entry)).join(',\n');
console.log(`{\n  "uris": [\n${lines(uris.map(read))}\n  ],\n  "options": [\n${
  lines(Object.entries(options))}\n  ]\n}`);
