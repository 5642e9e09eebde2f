// Changes that are not saved yet, kept in this browser: a reload, a closed tab and a stopped program lose none.
//
// Every tab has a name. The changes of a tab that is gone, or whose run of the program has ended, are taken over by
// another one.

const PREFIX = "flamest-label-";

let release = () => {};

// Lets other tabs take over what this one has kept.
export const releaseName = () => release();

// Holds the lock of a name for as long as the page lives; false where another tab holds it.
function holdName(name, withinMs) {
  if (!navigator.locks) return Promise.resolve(true);
  return new Promise(resolve => {
    navigator.locks
      .request(PREFIX + name, {signal: AbortSignal.timeout(withinMs)}, () => {
        resolve(true);
        return new Promise(free => (release = free));
      })
      .catch(() => resolve(false));
  });
}

// The name of this tab, the same after a reload. A duplicated tab gets one of its own.
export async function tabName() {
  const before = sessionStorage.getItem(PREFIX + "tab");
  if (before && (await holdName(before, 1000))) return before;
  const name = crypto.randomUUID();
  sessionStorage.setItem(PREFIX + "tab", name);
  await holdName(name, 1000);
  return name;
}

export class Kept {
  constructor(tab, folder) {
    Object.assign(this, {key: PREFIX + "changes-" + tab, folder});
  }

  read() {
    return read(this.key, this.folder);
  }

  write(content) {
    if (content.queue.length || content.conflicts.length)
      localStorage.setItem(this.key, JSON.stringify({folder: this.folder, ...content}));
    else localStorage.removeItem(this.key);
  }

  // Returns the actions and conflicts that tabs which are gone left behind, and forgets them there.
  async adopt() {
    const found = {queue: [], conflicts: []};
    const start = PREFIX + "changes-";
    for (const key of Object.keys(localStorage).filter(key => key.startsWith(start) && key !== this.key))
      await whileFree(PREFIX + key.slice(start.length), () => {
        const content = read(key, this.folder);
        if (!content) return;
        found.queue.push(...content.queue);
        found.conflicts.push(...content.conflicts);
        localStorage.removeItem(key);
      });
    return found;
  }
}

function read(key, folder) {
  try {
    const content = JSON.parse(localStorage.getItem(key));
    return content?.folder === folder ? content : null;
  } catch {
    return null;
  }
}

// Runs `act` while no tab holds that lock; not at all where one does.
async function whileFree(name, act) {
  if (navigator.locks) await navigator.locks.request(name, {ifAvailable: true}, lock => lock && act());
}
