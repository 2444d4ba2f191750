-- Reads since when tasks are open and wait, and counts the pushes that are due.
--
-- open       ns:open         sorted set  of the times at which each task was last written
-- pushes     ns:pushes       sorted set  of the times of the next tries
-- tasks      ns:{id}:task    hashes      of which submitted_at is read
-- max_bytes  longest submitted_at that is returned
-- Returns {now, number of due pushes, time of the open task that was written longest ago or {},
-- {submitted_at of each task, or nil}}. For a key of another type the value is Redis's error.
-- Infinite times, which no worker writes, are left out.
local open, pushes = unpack(KEYS)
local tasks = {unpack(KEYS, 3)}
local max_bytes = unpack(ARGV)

local now = stamp(now_s())
local submitted = {}
for each, task in ipairs(tasks) do
  local length = redis.pcall('HSTRLEN', task, 'submitted_at')
  submitted[each] = length
  if type(length) == 'number' then
    submitted[each] = length <= tonumber(max_bytes) and redis.call('HGET', task, 'submitted_at')
  end
end
local oldest = redis.pcall(
  'ZRANGE', open, '(-inf', '(+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
return {now, redis.pcall('ZCOUNT', pushes, '-inf', now), oldest[2] or oldest, submitted}
