-- Put before each script that appends an event: adds the event to the stream and numbers it.
-- `tail` is the event's JSON without its opening brace, sequence number and attempt; the script
-- adds those, so that numbers are given in the one place where they cannot collide.
local function append_event(task, events, tail)
  local seq = redis.call('HINCRBY', task, 'seq', 1)
  local attempt = redis.call('HGET', task, 'attempt') or '0'
  local json = '{"seq":' .. seq .. ',"attempt":' .. attempt .. ',' .. tail
  redis.call('XADD', events, 'MAXLEN', '~', 10000, seq .. '-0', 'event', json)
  return seq
end

local function now_s()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
