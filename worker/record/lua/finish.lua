-- Writes the end of a task and its terminal event, once.
--
-- KEYS[1]  ns:{id}:task        hash        terminal status and outcome written
-- KEYS[2]  ns:{id}:events      stream      terminal event appended
-- KEYS[3]  ns:open             sorted set  id touched: it stays until all is told (close.lua)
-- KEYS[4]  ns:{id}:checkpoint  string      removed
-- KEYS[5]  ns:dead             stream      id, request and reason appended, where there is a reason
-- ARGV     id, fence, status, outcome JSON, event tail, reason why the task is dead or ''
-- gives    1 when this fence's end is the one that stands (also when it was written before and
--          only the answer was lost), 0 when the task is another's
local held = redis.call('HMGET', KEYS[1], 'fence', 'status')
if held[1] ~= ARGV[2] then return 0 end
if held[2] ~= 'running' then return held[2] == ARGV[3] and 1 or 0 end
local stamp = string.format('%.6f', now_s())
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'outcome', ARGV[4], 'ended_at', stamp)
redis.call('ZADD', KEYS[3], stamp, ARGV[1])
append_event(KEYS[1], KEYS[2], ARGV[5])
if ARGV[6] ~= '' then
  local of = redis.call('HMGET', KEYS[1], 'request', 'attempt', 'owner')
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'task_id', ARGV[1],
    'request', of[1] or '', 'attempt', of[2] or '0', 'worker', of[3] or '', 'reason', ARGV[6])
end
redis.call('DEL', KEYS[4])
return 1
