-- Ends a task that has waited past its deadline, though no worker had time for it.
--
-- KEYS[1]  ns:{id}:task    hash        terminal status and outcome written
-- KEYS[2]  ns:{id}:events  stream      event `expired` appended
-- KEYS[3]  ns:open         sorted set  id touched: it stays until all is told (close.lua)
-- ARGV     id, event tail
-- gives    1, or 0 when it waits no more or its deadline has not passed
local of = redis.call('HMGET', KEYS[1], 'status', 'deadline_at')
if of[1] ~= 'queued' or not of[2] or tonumber(of[2]) > now_s() then return 0 end
append_event(KEYS[1], KEYS[2], ARGV[2])
local stamp = string.format('%.6f', now_s())
redis.call('HSET', KEYS[1], 'status', 'expired', 'outcome', '{"step":0}', 'ended_at', stamp)
redis.call('ZADD', KEYS[3], stamp, ARGV[1])
return 1
