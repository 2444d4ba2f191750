-- Shared functions, put before the text of every other script.

-- Appends an event to a task's stream and returns its number. `tail` is the event's JSON without
-- the opening brace, `seq` and `attempt`. Events are numbered here alone, so numbers have no gaps
-- and two writers never use the same one.
local function append_event(task, events, tail)
  local seq = redis.call('HINCRBY', task, 'seq', 1)
  local attempt = redis.call('HGET', task, 'attempt') or '0'
  local json = '{"seq":' .. seq .. ',"attempt":' .. attempt .. ',' .. tail
  redis.call('XADD', events, 'MAXLEN', '~', 10000, seq .. '-0', 'event', json)
  return seq
end

-- Redis's clock in Unix seconds.
local function now_s()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

-- Unix seconds as records and sorted sets have them.
local function stamp(seconds)
  return string.format('%.6f', seconds)
end

-- Wakes the ready worker that runs the fewest tasks, if it runs fewer than `below`. `ready` is the
-- sorted set of a queue, see names.ready_key. Returns whether one was woken; never fails, since
-- workers look for messages themselves, too.
local function wake_one(ready, below)
  local owner, tasks = unpack(redis.pcall('ZRANGE', ready, 0, 0, 'WITHSCORES'))
  if not owner or tonumber(tasks) >= tonumber(below) then return false end
  redis.pcall('ZADD', ready, stamp(now_s()), owner)
  redis.pcall('LPUSH', 'sag.wake.' .. owner, 1)
  return true
end

-- What `write` returns, or its error as a value that can stand among the answers of a script.
local function answer_of(write, ...)
  local ok, answer = pcall(write, ...)
  if ok then return answer end
  return {err = type(answer) == 'table' and answer.err or answer} -- a string before Redis 7
end
