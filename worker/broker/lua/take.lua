-- Takes the next message: moves it from its list to the held messages in one step, so that no crash
-- can lose it. Without one, the worker is ready: the next message of its queues wakes it. Messages
-- are left to ready workers that run fewer tasks; these are woken. A message that is too large is
-- dropped.
--
-- unacked        sag.unacked         hash        [message, priority of its list, queue] written
--                                                under the tag
-- unacked_index  sag.unacked_index   sorted set  tag added, scored by the end of its lease
-- wake           sag.wake.<owner>    list        deleted: the worker is awake
-- lists          of the queues       lists       in the order in which they are tried
-- tag
-- lease_s
-- max_bytes      of a message
-- owner          of this call
-- tasks          that the owner runs
-- leaves         1 to leave messages to ready workers that run fewer tasks
-- woken_s        how long a woken worker may take to come here; then it counts as dead
-- below          ready workers with so many tasks or more do not look at the last list
-- origins        the queue and the priority of each list; the queues' sets sag.ready.<queue> are
--                written
-- Returns {index of the list, message, number of other workers that are ready or were just woken},
-- {index of the list, '', 0, bytes} for one that is too large; or, when there is no message for this
-- worker, the number of ready workers (of the queue with the fewest), negative where messages were
-- left to others. The first index is 0.
local unacked, unacked_index, wake = unpack(KEYS)
local lists = {unpack(KEYS, 4)}
local tag, lease_s, max_bytes, owner, tasks, leaves, woken_s, below = unpack(ARGV)
local origins = {unpack(ARGV, 9)}
local now = now_s()

-- Wakes up to one worker that runs fewer tasks for each waiting message. Returns how many were
-- woken within `woken_s`, and have not come here yet.
local function woken_workers(queue, waiting)
  local ready = 'sag.ready.' .. queue
  redis.call('ZREMRANGEBYSCORE', ready, 1e9, now - woken_s)
  redis.call('ZREMRANGEBYSCORE', ready, '(' .. stamp(now), '+inf') -- of another clock
  local woken = redis.call('ZCOUNT', ready, 1e9, '+inf')
  while woken < waiting and wake_one(ready, tasks) do woken = woken + 1 end
  return woken
end

-- How many workers are ready for what this one takes.
local function ready_workers(ready)
  return redis.call('ZCOUNT', ready, 0, '(' .. below)
end

redis.call('DEL', wake)
local sets = {}
for each = 1, #origins, 2 do
  local ready = 'sag.ready.' .. origins[each]
  -- Producers may write this key: one of another type is deleted.
  if not sets[ready] and type(redis.pcall('ZREM', ready, owner)) == 'table' then
    redis.call('DEL', ready)
  end
  sets[ready] = true
end
local any, left = redis.call('EXISTS', unpack(lists)) > 0, {}
for number, list in ipairs(any and lists or {}) do
  local waiting = redis.pcall('LLEN', list)
  if type(waiting) == 'table' then
    -- A key of another type blocks only its own queue; any other error concerns all of Redis.
    if not string.find(waiting.err, 'WRONGTYPE', 1, true) then return waiting end
    waiting = 0
  end
  local queue, priority = origins[2 * number - 1], origins[2 * number]
  if waiting > 0 and leaves == '1' and not left[queue] then
    left[queue] = woken_workers(queue, math.min(waiting, 64)) >= waiting
  end
  if waiting > 0 and not left[queue] then
    local message = redis.call('RPOP', list)
    if #message > tonumber(max_bytes) then return {number - 1, '', 0, #message} end
    local held = '[' .. message .. ',' .. priority .. ',' .. cjson.encode(queue) .. ']'
    redis.call('HSET', unacked, tag, held)
    redis.call('ZADD', unacked_index, now + lease_s, tag)
    local ready = 'sag.ready.' .. queue
    return {number - 1, message, ready_workers(ready) + redis.call('ZCOUNT', ready, 1e9, '+inf')}
  end
end
local fewest
for ready in pairs(sets) do
  redis.call('ZADD', ready, tasks, owner)
  local number = ready_workers(ready)
  if not fewest or number < fewest then fewest = number end
end
for _, is_left in pairs(left) do if is_left then return -fewest end end
return fewest
